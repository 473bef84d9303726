#!/usr/bin/env python3
"""Check the mmws. prefix on every stock config of mmdet and mmseg: build the model and run it.

Writes a table with a row per config, and prints the totals. Models that several configs share are checked once.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import Counter, defaultdict
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, fields, replace
from pathlib import Path

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from mmws.errors import WSError, one_line_errors
    from mmws.experiments.sweep import Row, check_placement, prepare_sweep_worker, read_model
    from mmws.experiments.worker import worker_pool
    from mmws.files import atomic_write, check_output
    from mmws.openmmlab.stock_configs import stock_configs
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: tools/{Path(__file__).name} needs mmws.experiments, which is not in the installed '
                     'package; run it from a checkout of the repository (pip install -e .)'
                     if getattr(error, 'name', '') == 'mmws.experiments' else
                     f'error: {error}; install the missing package (see Install in README.md)') from None

BAR = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', type=Path, help='.csv file to write')
    parser.add_argument('--only', default='', help='check only the configs with this text in their name')
    parser.add_argument('--processes', type=int, default=os.cpu_count(), help='number of checks at a time')
    options = parser.parse_args()
    names = [name for package in ('mmdet', 'mmseg') for name in stock_configs(package) if options.only in name]
    if not names:
        raise SystemExit(f'error: no stock config has {options.only!r} in its name')
    with one_line_errors():
        check_output(options.table, endings=('.csv',))
        if options.processes < 1:
            raise WSError(f'--processes: expected at least one, got {options.processes}')
    with Progress(*BAR) as progress, worker_pool(options.processes, prepare_sweep_worker) as pool:
        rows = sweep(names, pool, progress)
    with atomic_write(options.table) as partial, partial.open('w', newline='') as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)], lineterminator='\n')
        writer.writeheader()
        writer.writerows({**asdict(row), 'skipped': '; '.join(f'{count} {why}' for why, count in row.skipped.items())}
                         for row in rows)
    show(rows)
    if any(row.verdict == 'fail' for row in rows):
        raise SystemExit(f'error: the check of some models failed; see {options.table}')


def sweep(names: list[str], pool: Executor, progress: Progress) -> list[Row]:
    """Check the configs, and return a row for each."""
    rows, models = [], defaultdict(list)
    for name, future in finished({pool.submit(read_model, name): name for name in names}, progress, 'read'):
        if future.exception():
            rows.append(Row(name, verdict='cannot build', why=f'the config cannot be read: {future.exception()}'))
        else:
            models[future.result()].append(name)
    checks = {pool.submit(check_placement, min(shared), *model): shared for model, shared in models.items()}
    for shared, future in finished(checks, progress, 'check'):
        row = Row('', verdict='fail', why=repr(future.exception())) if future.exception() else future.result()
        rows += [replace(row, config=name) for name in shared]
    return sorted(rows, key=lambda row: row.config)


def finished(tasks: dict[Future, object], progress: Progress, label: str):
    """Yield the value and the future of each task when it is done."""
    for future in progress.track(as_completed(tasks), len(tasks), description=label):
        yield tasks[future], future


def show(rows: list[Row]) -> None:
    """Print the totals, and the models that failed or cannot be built."""
    console = Console()
    table = Table('', 'configs', 'built without prefix', 'passed', 'convs', 'standardized', 'not run')
    for scope in ('mmdet', 'mmseg', ''):
        part = [row for row in rows if row.config.startswith(scope)]
        table.add_row(scope or 'all', *map(str, (
            len(part), sum(row.verdict != 'cannot build' for row in part), sum(row.verdict == 'pass' for row in part),
            sum(row.convs for row in part), sum(row.converted for row in part), sum(row.unrun for row in part))))
    console.print(table)
    for (verdict, why), count in Counter((row.verdict, row.why) for row in rows if row.verdict != 'pass').items():
        console.print(f'{verdict}, {count} configs: {why}', markup=False)


if __name__ == '__main__':
    main()

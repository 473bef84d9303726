#!/usr/bin/env python3
"""Put the mmws. prefix before every stock config of mmdet and mmseg and check the outcome by running the model.

Writes a table with a line a config, and prints its totals. Models that several configs share are checked once.
"""

import argparse
import csv
import os
from collections import Counter, defaultdict
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields, replace
from multiprocessing import get_context
from pathlib import Path

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from mmws.errors import WSError, one_line_errors
    from mmws.experiments.sweep import Row, check_model, prepare_process, read_model
    from mmws.files import check_output
    from mmws.openmmlab.stock_configs import stock_configs
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; run `make setup` and `source .venv/bin/activate`') from None

BAR = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', type=Path, help='the .csv file to write')
    parser.add_argument('--only', default='', help='check the configs with this in their name alone')
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    options = parser.parse_args()
    names = [name for package in ('mmdet', 'mmseg') for name in stock_configs(package) if options.only in name]
    if not names:
        raise SystemExit(f'error: no stock config has {options.only!r} in its name')
    with one_line_errors():
        check_output(options.table, endings=('.csv',))
        if options.processes < 1:
            raise WSError(f'--processes: expected at least one, got {options.processes}')
    with Progress(*BAR) as progress, ProcessPoolExecutor(
            options.processes, get_context('spawn'), prepare_process) as pool:
        rows = sweep(names, pool, progress)
    with options.table.open('w', newline='') as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)], lineterminator='\n')
        writer.writeheader()
        writer.writerows(asdict(row) | {'skipped': flat(row.skipped)} for row in rows)
    show(rows)
    if any(row.verdict == 'fail' for row in rows):
        raise SystemExit(f'error: not every model is right; see {options.table}')


def sweep(names: list[str], pool: Executor, progress: Progress) -> list[Row]:
    """Check all the configs and return a row for each."""
    rows, models = [], defaultdict(list)
    for name, future in finished({pool.submit(read_model, name): name for name in names}, progress, 'read'):
        if future.exception():
            rows.append(Row(name, verdict='cannot build', why=f'the config cannot be read: {future.exception()}'))
        else:
            models[future.result()].append(name)
    checks = {pool.submit(check_model, min(alike), *model): alike for model, alike in models.items()}
    for alike, future in finished(checks, progress, 'check'):
        row = Row('', verdict='fail', why=repr(future.exception())) if future.exception() else future.result()
        rows += [replace(row, config=name) for name in alike]
    return sorted(rows, key=lambda row: row.config)


def finished(tasks: dict[Future, object], progress: Progress, what: str):
    """Yield what was submitted, with its future, as it is done."""
    yield from ((tasks[future], future) for future in progress.track(as_completed(tasks), len(tasks), description=what))


def flat(skipped: dict[str, int]) -> str:
    return '; '.join(f'{count} {reason}' for reason, count in skipped.items())


def show(rows: list[Row]) -> None:
    """Print the totals, and what failed or could not be built and why."""
    console = Console()
    table = Table('', 'configs', 'built with own type', 'right with prefix', 'convs', 'standardized', 'not run')
    for part in ('mmdet', 'mmseg', ''):
        of = [row for row in rows if row.config.startswith(part)]
        built = [row for row in of if row.verdict != 'cannot build']
        table.add_row(part or 'all', *map(str, (
            len(of), len(built), sum(row.verdict == 'pass' for row in of), sum(row.convs for row in of),
            sum(row.converted for row in of), sum(row.unrun for row in of))))
    console.print(table)
    for (verdict, why), count in Counter((row.verdict, row.why) for row in rows if row.verdict != 'pass').items():
        console.print(f'{verdict}, {count} configs: {why}', markup=False)


if __name__ == '__main__':
    main()

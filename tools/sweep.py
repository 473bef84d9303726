#!/usr/bin/env python3
"""Check the conversion on the stock configs of the toolkits, or on the networks of a library: build each and run it.

Writes TABLE.csv with a row per config, and the totals to TABLE.md. Models that several configs share are checked once.
Rows of other toolkits and libraries in an existing table stay, so that each can be checked in its own environment.
After an interrupt, the same command resumes.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from mmws.errors import WSError, format_exception, one_line_errors
    from mmws.experiments.sweep import Row, check_placement, prepare_sweep_worker
    from mmws.experiments.sweep_library import LIBRARIES, check_network, library_networks
    from mmws.experiments.sweep_models import read_model
    from mmws.experiments.sweep_table import append_rows, read_rows, totals, write_table
    from mmws.experiments.worker import WorkerPool
    from mmws.files import check_output
    from mmws.openmmlab.stock_configs import stock_configs
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: tools/{Path(__file__).name} needs mmws.experiments, which is not in the installed '
                     'package; run it from a checkout of the repository (pip install -e .)'
                     if getattr(error, 'name', '') == 'mmws.experiments' else
                     f'error: {error}; install the missing package (see Install in README.md)') from None

TOOLKITS = 'mmdet', 'mmseg', 'mmpretrain'
BAR = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', type=Path, metavar='TABLE.csv', help='to write')
    parser.add_argument('--toolkit', nargs='+', default=[], metavar='NAME',
                        help=f'packages with stock configs, such as mmpose; default: {", ".join(TOOLKITS)}')
    parser.add_argument('--library', nargs='+', default=[], choices=LIBRARIES, help='their networks with BatchNorm')
    parser.add_argument('--only', default='', metavar='TEXT', help='check only the models with this text in their name')
    parser.add_argument('--processes', type=int, default=os.cpu_count(), help='number of checks at a time')
    options = parser.parse_args()
    with one_line_errors():
        check_output(options.table, endings=('.csv',))
        if options.processes < 1:
            raise WSError(f'--processes: expected at least one, got {options.processes}')
        toolkits = options.toolkit or ([] if options.library else [*filter(find_spec, TOOLKITS)])
        configs = [name for package in toolkits for name in stock_configs(package) if options.only in name]
        networks = [name for library in options.library for name in library_networks(library) if options.only in name]
        if not configs + networks:
            raise WSError(f'no model has {options.only!r} in its name')
        old, part = read_rows(options.table), options.table.with_suffix('.part.csv')
        interrupted = {row.config: row for row in read_rows(part)}  # the last row of a config counts
    asked = {*configs, *networks}
    rows = [row for row in interrupted.values() if row.config in asked and row.verdict != 'fail']
    done = {row.config for row in rows}
    if done:
        print(f'{len(done)} models are in {part}, from a run that was interrupted; delete it to check them again')
    try:
        with Progress(*BAR) as progress:
            if remaining := [name for name in configs if name not in done]:
                with WorkerPool(options.processes, prepare_sweep_worker, (toolkits, True)) as pool:
                    rows += append_rows(part, sweep(remaining, pool, progress))
            if remaining := [name for name in networks if name not in done]:
                with WorkerPool(options.processes) as pool:
                    rows += append_rows(part, sweep_networks(remaining, pool, progress))
    except KeyboardInterrupt:
        raise SystemExit('interrupted; run the same command again to resume') from None
    except BrokenProcessPool:
        raise SystemExit('error: a process was killed, probably for lack of memory, or did not start; run the same '
                         'command with fewer --processes to resume') from None
    swept = () if options.only else (*toolkits, *options.library)
    checked = {row.config for row in rows}
    kept = [row for row in old if row.config not in checked and row.config.partition('::')[0] not in swept]
    write_table(options.table, sorted([*kept, *rows], key=lambda row: row.config))
    part.unlink(missing_ok=True)
    if others := [row for row in interrupted.values() if row.config not in asked]:
        append_rows(part, others)
    show(rows)
    if any(row.verdict == 'fail' for row in rows):
        raise SystemExit(f'error: the check of some models failed; see {options.table}')


def sweep(names: list[str], pool: Executor, progress: Progress) -> Iterator[Row]:
    """Check the configs, and yield a row for each."""
    models = defaultdict(list)
    for name, future in finished({pool.submit(read_model, name): name for name in names}, progress, 'read'):
        if error := future.exception():
            yield Row(name, verdict='cannot build', why=f'the config cannot be read: {format_exception(error)}')
        else:
            models[future.result()].append(name)
    checks = {pool.submit(check_placement, min(shared), *model): shared for model, shared in models.items()}
    for shared, future in finished(checks, progress, 'check'):
        yield from (replace(row_of(future), config=name) for name in shared)


def sweep_networks(names: list[str], pool: Executor, progress: Progress) -> Iterator[Row]:
    """Check the networks of a library, and yield a row for each with BatchNorm."""
    for name, future in finished({pool.submit(check_network, name): name for name in names}, progress, 'check'):
        row = row_of(future)
        if row is not None:
            yield replace(row, config=name)


def row_of(future: Future) -> Row | None:
    """Return the row of a check; one that failed, if the check raised an exception."""
    error = future.exception()
    return future.result() if error is None else Row('', verdict='fail', why=format_exception(error))


def finished(tasks: dict[Future, object], progress: Progress, label: str):
    """Yield the value and the future of each task when it is done.

    Raises:
        BrokenProcessPool: if a process was killed. All other tasks would fail too.
    """
    for future in progress.track(as_completed(tasks), len(tasks), description=label):
        if isinstance(future.exception(), BrokenProcessPool):
            future.result()
        yield tasks[future], future


def show(rows: list[Row]) -> None:
    """Print the totals, and the models that failed or cannot be built."""
    console = Console()
    head, lines = totals(rows)
    table = Table(*head)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for (verdict, why), count in Counter((row.verdict, row.why) for row in rows if row.verdict != 'pass').items():
        console.print(f'{verdict}, {count} configs: {why}', markup=False)


if __name__ == '__main__':
    main()

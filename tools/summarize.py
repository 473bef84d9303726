#!/usr/bin/env python3
"""Print the results of a run, and write summary.json, curves.png and predictions.png to its work directory."""

import argparse
from pathlib import Path

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.training_summary import compare_pictures, summarize
    from mmws.errors import one_line_errors
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='of tools/train.py and tools/test.py')
    parser.add_argument('--against', nargs='+', type=Path, default=[], metavar='WORK_DIR',
                        help='other trainings, whose predictions comparison.png shows too')
    options = parser.parse_args()
    work_dir = options.work_dir
    with one_line_errors():
        summary = summarize(work_dir)
        if options.against:
            compare_pictures([work_dir, *options.against])
    table = Table(title=str(work_dir), show_header=False)
    for name, value in summary.items():
        table.add_row(name, str(value))
    console = Console()
    console.print(table)
    for name in ('summary.json', 'curves.png', 'predictions.png', 'comparison.png', 'pictures'):
        if (work_dir / name).exists():
            console.print(f'{work_dir / name}')


if __name__ == '__main__':
    main()

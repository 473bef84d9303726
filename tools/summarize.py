#!/usr/bin/env python3
"""Print what a run came to, and write summary.json, curves.png and predictions.png into its work directory."""

import argparse
from pathlib import Path

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.training_summary import summarize
    from mmws.errors import one_line_errors
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; run `make setup` and `source .venv/bin/activate`') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='where tools/train.py and tools/test.py wrote')
    work_dir = parser.parse_args().work_dir
    with one_line_errors():
        summary = summarize(work_dir)
    table = Table(title=str(work_dir), show_header=False)
    for name, value in summary.items():
        table.add_row(name, str(value))
    console = Console()
    console.print(table)
    for written in ('summary.json', 'curves.png', 'predictions.png', 'pictures'):
        if (work_dir / written).exists():
            console.print(f'{work_dir / written}')


if __name__ == '__main__':
    main()

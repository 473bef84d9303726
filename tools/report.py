#!/usr/bin/env python3
"""Show what the mmws. prefix does to the model of a config: no data, no weights needed.

CONFIG is a path, or a stock config such as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.config import CfgOptions
    from mmws.cli.conversion_report import Overview, look_at, write_config
    from mmws.errors import one_line_errors
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; run `make setup` and `source .venv/bin/activate`') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('--ws', nargs='+', action=CfgOptions, default={}, metavar='NAME=VALUE',
                        help="options of the conversion, such as norm=keep or exclude=\"['neck.*']\"")
    parser.add_argument('--json', action='store_true', help='print JSON in place of the tree')
    parser.add_argument('--write', type=Path, metavar='OUT.py', help='write the config that puts the prefix there')
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    with one_line_errors():
        overview = look_at(options.config, options.ws)
        if options.write:
            write_config(options.config, options.ws, options.write)
    print(json.dumps(overview.as_dict(), indent=1)) if options.json else show(overview)
    if options.write:
        Console(stderr=True).print(f'wrote {options.write}; train it with\n  python tools/train.py {options.write}')


def show(overview: Overview) -> None:
    table = Table(show_header=False)
    for name, value in overview.figures.items():
        table.add_row(name, f'{value:,}' if isinstance(value, int) else value)
    console = Console()
    console.print(overview.tree())
    console.print(table)


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
"""Show how the mmws. prefix converts the model of a config. Needs no data and no weights.

CONFIG is a path, or a stock config such as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py.
"""

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.config import CfgOptions
    from mmws.cli.conversion_report import ConversionReport, inspect_conversion, write_config
    from mmws.cli.report_page import write_page
    from mmws.errors import one_line_errors
    from mmws.files import check_output
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('--ws', nargs='+', action=CfgOptions, default={}, metavar='NAME=VALUE',
                        help="ws options of the conversion, such as norm=keep or exclude=\"['neck.*']\"")
    parser.add_argument('--json', action='store_true', help='print JSON instead of the tree')
    parser.add_argument('--html', type=Path, metavar='OUT.html', help='write the tree as a page that can be searched')
    parser.add_argument('--write', type=Path, metavar='OUT.py', help='write a config that adds the prefix')
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    with one_line_errors():
        if options.html:
            check_output(options.html, endings=('.html',))
        report = inspect_conversion(options.config, options.ws)
        if options.write:
            write_config(options.config, options.ws, options.write)
        if options.html:
            write_page(report, options.html)
    print(json.dumps(report.as_dict(), indent=1)) if options.json else show(report)
    if options.html:
        print(f'wrote {options.html}', file=sys.stderr)
    if options.write:
        print(f'wrote {options.write}; to train it, run\n  python tools/train.py {options.write}', file=sys.stderr)


def show(report: ConversionReport) -> None:
    table = Table(show_header=False)
    for name, value in report.totals.items():
        table.add_row(name, f'{value:,}' if isinstance(value, int) else value)
    console = Console()
    console.print(report.tree())
    console.print(table)
    for where, calls in report.report.functions.items():
        console.print(f'unchanged: {"; ".join(calls)}, called at {where}', markup=False, soft_wrap=True)


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
"""Measure how far the statistics of each batch are from BatchNorm's running ones while each CONFIG trains.

    tools/bn_statistics.py A.py B.py --cfg-options model.ws.norm=keep model.ws.weight=plain

compares two networks with their own BatchNorm, although the configs have the mmws. prefix.
"""

import argparse
from pathlib import Path
from statistics import median

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.config import CfgOptions
    from mmws.errors import one_line_errors
    from mmws.experiments.bn_statistics import PANELS, measure_statistics
    from mmws.experiments.short_run import load_training_config
    from mmws.files import check_output_folder
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: tools/{Path(__file__).name} needs mmws.experiments, which is not in the installed '
                     'package; run it from a checkout of the repository (pip install -e .)'
                     if getattr(error, 'name', '') == 'mmws.experiments' else
                     f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--steps', type=int, default=1000, help='number of steps of each training (1000)')
    parser.add_argument('--every', type=int, default=5, help='steps between measurements (5)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/bn_statistics'),
                        help='folder for bn_statistics.json and .png (work_dirs/bn_statistics)')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='NAME=VALUE')
    options = parser.parse_args()
    with one_line_errors():
        configs = {Path(path).stem: load_training_config(path, options.cfg_options) for path in options.configs}
        check_output_folder(options.out)
        result = measure_statistics(configs, options.steps, options.every, options.out)
    table = Table('median of the second half', *PANELS.values())
    for name, points in result['measured'].items():
        table.add_row(name, *(f'{median(point[key] for point in points[len(points) // 2:]):.3g}' for key in PANELS))
    console = Console()
    console.print(table)
    console.print(f'{options.out / "bn_statistics.json"}\n{options.out / "bn_statistics.png"}')


if __name__ == '__main__':
    main()

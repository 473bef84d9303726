#!/usr/bin/env python3
"""Measure the smoothness of the loss along the gradient while CONFIG trains, and compare it with other options.

    tools/landscape.py CONFIG --against model.ws.weight=plain

compares a network with and without Weight Standardization.
"""

import argparse
from pathlib import Path
from statistics import median

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.config import CfgOptions
    from mmws.errors import one_line_errors
    from mmws.experiments.landscape import measure_landscape
    from mmws.experiments.short_run import load_training_configs
    from mmws.files import check_output_folder
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: tools/{Path(__file__).name} needs mmws.experiments, which is not in the installed '
                     'package; run it from a checkout of the repository (pip install -e .)'
                     if getattr(error, 'name', '') == 'mmws.experiments' else
                     f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('--against', nargs='+', action='append', default=[], metavar='NAME=VALUE',
                        help='options of another training to compare; can be repeated')
    parser.add_argument('--steps', type=int, default=500, help='number of steps of each training (500)')
    parser.add_argument('--every', type=int, default=20, help='steps between measurements (20)')
    parser.add_argument('--out', type=Path, help='folder for landscape.json and .png (work_dirs/landscape/<config>)')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='NAME=VALUE')
    options = parser.parse_args()
    out = options.out or Path('work_dirs/landscape') / Path(options.config).stem
    with one_line_errors():
        configs = load_training_configs(options.config, options.cfg_options, options.against)
        check_output_folder(out)
        result = measure_landscape(configs, options.steps, options.every, out)
    table = Table('median along training', 'loss', 'effective smoothness', 'effective Lipschitz constant')
    for name, points in result['measured'].items():
        table.add_row(name, *(f'{median(point[key] for point in points):.3g}' for key in ('loss', 'beta', 'lipschitz')))
    console = Console()
    console.print(table)
    console.print(f'{out / "landscape.json"}\n{out / "landscape.png"}')


if __name__ == '__main__':
    main()

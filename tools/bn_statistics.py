#!/usr/bin/env python3
"""Measure how far the statistics of each batch are from BatchNorm's running ones while each CONFIG trains.

    tools/bn_statistics.py A.py B.py --cfg-options model.ws.norm=keep model.ws.weight=plain

compares two networks with their own BatchNorm, although the configs have the mmws. prefix. After each training, the
network is tested twice, with its running statistics and with those of each test batch, and the distance is measured in
each layer.
"""

import argparse
from collections import Counter
from pathlib import Path
from statistics import mean

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.config import CfgOptions
    from mmws.errors import WSError, one_line_errors
    from mmws.experiments.bn_statistics import HIGH, PANELS, measure_statistics
    from mmws.experiments.short_run import load_training_config
    from mmws.files import check_output_folder
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: tools/{Path(__file__).name} needs mmws.experiments, which is not in the installed '
                     'package; run it from a checkout of the repository (pip install -e .)'
                     if getattr(error, 'name', '') == 'mmws.experiments' else
                     f'error: {error}; install the missing package (see Install in README.md)') from None

KINDS = {'median channel': '', f'{HIGH:.0%} quantile': '_high'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='[NAME=]CONFIG',
                        help='NAME in the figure; default: that of the file')
    parser.add_argument('--steps', type=int, default=1000, help='number of steps of each training (1000)')
    parser.add_argument('--every', type=int, default=5, help='steps between measurements (5)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/bn_statistics'),
                        help='folder for bn_statistics.json and the figures (work_dirs/bn_statistics)')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='NAME=VALUE')
    options = parser.parse_args()
    with one_line_errors():
        named = [text.rpartition('=')[::2] for text in options.configs]
        named = [(name or Path(path).stem, path) for name, path in named]
        for name, count in Counter(name for name, _ in named).items():
            if count > 1:
                raise WSError(f'{count} configs are named {name!r}; write NAME=CONFIG')
        configs = {name: load_training_config(path, options.cfg_options) for name, path in named}
        check_output_folder(options.out)
        result = measure_statistics(configs, options.steps, options.every, options.out)
    table = Table('second half of the training', *(f'{label}, {kind}' for label in PANELS.values() for kind in KINDS),
                  'test with running statistics', 'with those of the batch')
    for name, points in result['measured'].items():
        means = (mean(point[f'{key}{kind}'] for point in points[len(points) // 2:]) for key in PANELS
                 for kind in KINDS.values())
        table.add_row(name, *(f'{value:.3g}' for value in (*means, *result['tested'][name].values())))
    Console().print(table)
    for name in ('bn_statistics.json', 'bn_statistics.png', 'bn_layers.png'):
        print(options.out / name)


if __name__ == '__main__':
    main()

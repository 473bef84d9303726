#!/usr/bin/env python3
"""Learning-rate range test: train CONFIG while the learning rate rises, and print the usable range.

    tools/lr_range.py CONFIG --against model.ws.weight=plain --against model.ws.norm=keep

draws several trainings in one figure. The usable range starts where the smoothed loss has fallen by a tenth of its
total fall, and ends where it exceeds 1.5 times its minimum.
"""

import argparse
from pathlib import Path

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.config import CfgOptions
    from mmws.errors import one_line_errors
    from mmws.experiments.lr_range import measure_lr_ranges
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
    parser.add_argument('--low', type=float, default=1e-4, help='first learning rate (1e-4)')
    parser.add_argument('--high', type=float, default=10, help='last learning rate (10)')
    parser.add_argument('--steps', type=int, default=300, help='number of steps from the first to the last rate (300)')
    parser.add_argument('--out', type=Path, help='folder for lr_range.json and .png (work_dirs/lr_range/<config>)')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='NAME=VALUE')
    options = parser.parse_args()
    out = options.out or Path('work_dirs/lr_range') / Path(options.config).stem
    with one_line_errors():
        configs = load_training_configs(options.config, options.cfg_options, options.against)
        check_output_folder(out)
        results = measure_lr_ranges(configs, options.low, options.high, options.steps, out)
    table = Table('', 'usable', 'diverged at')
    for name, result in results.items():
        usable = '{:.3g} to {:.3g}'.format(*result['usable']) if result['usable'] else 'the loss never fell'
        table.add_row(name, usable, f'{result["diverged"]:.3g}' if result['diverged'] else 'did not diverge')
    console = Console()
    console.print(table)
    console.print(f'{out / "lr_range.json"}\n{out / "lr_range.png"}')


if __name__ == '__main__':
    main()

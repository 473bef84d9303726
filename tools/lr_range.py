#!/usr/bin/env python3
"""Learning-rate range test: train CONFIG while the rate rises, and print the range that training can use.

    tools/lr_range.py CONFIG --against model.ws.weight=plain --against model.ws.norm=keep

draws several in one figure.
It is from where the smoothed loss has made a tenth of its fall to where it exceeds 1.5 times its minimum.
"""

import argparse
from pathlib import Path

try:
    from rich.console import Console
    from rich.table import Table

    from mmws.cli.config import CfgOptions
    from mmws.errors import one_line_errors
    from mmws.experiments.lr_range import measure_lr_ranges
    from mmws.experiments.short_run import read_configs
    from mmws.files import check_output_folder
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; run `make setup` and `source .venv/bin/activate`') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('--against', nargs='+', action='append', default=[], metavar='NAME=VALUE',
                        help='what differs in another run beside it; may be given several times')
    parser.add_argument('--low', type=float, default=1e-4, help='the first rate (1e-4)')
    parser.add_argument('--high', type=float, default=10, help='the last rate (10)')
    parser.add_argument('--steps', type=int, default=300, help='from the one to the other (300)')
    parser.add_argument('--out', type=Path, help='folder of lr_range.json and .png (work_dirs/lr_range/<config>)')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='NAME=VALUE')
    options = parser.parse_args()
    out = options.out or Path('work_dirs/lr_range') / Path(options.config).stem
    with one_line_errors():
        configs = read_configs(options.config, options.cfg_options, options.against)
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

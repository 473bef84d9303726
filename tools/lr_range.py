#!/usr/bin/env python3
"""Learning-rate range test: train CONFIG while the rate rises, and print the range that training can use.

It is from where the smoothed loss has made a tenth of its fall to where it exceeds 1.5 times its minimum.
"""

import argparse
from pathlib import Path

try:
    from mmengine.config import DictAction
    from rich.console import Console

    from mmws.errors import WSError
    from mmws.lr_range import measure_lr_range
    from mmws.short_run import read_config
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; run `make setup` and `source .venv/bin/activate`') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('--low', type=float, default=1e-4, help='the first rate (1e-4)')
    parser.add_argument('--high', type=float, default=10, help='the last rate (10)')
    parser.add_argument('--steps', type=int, default=300, help='from the one to the other (300)')
    parser.add_argument('--out', type=Path, help='folder of lr_range.json and .png (work_dirs/lr_range/<config>)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='NAME=VALUE')
    options = parser.parse_args()
    out = options.out or Path('work_dirs/lr_range') / Path(options.config).stem
    try:
        result = measure_lr_range(
            read_config(options.config, options.cfg_options), options.low, options.high, options.steps, out)
    except WSError as error:
        raise SystemExit(f'error: {error}') from None
    console = Console()
    console.print(f'diverged at {result["diverged"]:.3g}' if result['diverged'] else 'did not diverge')
    console.print('usable: {:.3g} to {:.3g}'.format(*result['usable']) if result['usable'] else 'the loss never fell')
    console.print(f'{out / "lr_range.json"}\n{out / "lr_range.png"}')


if __name__ == '__main__':
    main()

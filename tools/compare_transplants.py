#!/usr/bin/env python3
"""Compare the ways to turn CHECKPOINT, of a BatchNorm network, into a start for the converted network of CONFIG.

Each start is tested without training: what is fitted, the number of images, groups, other norms. Writes
OUT/transplants.json and prints a table.
"""

import argparse
import sys
from pathlib import Path

try:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from mmws.cli.check_data import check_files
    from mmws.cli.config import CfgOptions, load_config, silence
    from mmws.errors import one_line_errors
    from mmws.experiments.transplant_forms import FORMS, compare_transplants
    from mmws.files import check_output_folder, write_json
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: tools/{Path(__file__).name} needs mmws.experiments, which is not in the installed '
                     'package; run it from a checkout of the repository (pip install -e .)'
                     if getattr(error, 'name', '') == 'mmws.experiments' else
                     f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the converted network')
    parser.add_argument('checkpoint', help='weights of the whole BatchNorm network')
    parser.add_argument('--images', type=Path, help="folder of images; default: the config's training images")
    parser.add_argument('--out', type=Path, default=Path('work_dirs/transplants'),
                        help='folder for transplants.json (work_dirs/transplants)')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='NAME=VALUE',
                        help='override values of the config')
    options = parser.parse_args()
    console, results = Console(file=sys.stdout), []
    with one_line_errors():
        check_output_folder(options.out)
        config = load_config(options.config, options.cfg_options, ('model', 'default_scope', 'test_dataloader'))
        check_files(config, ('test_dataloader',))
        forms = compare_transplants(config, options.checkpoint, options.images, options.out)
        for _ in track(range(len(FORMS) + 1), 'starts', console=console):
            with silence():
                results.append(next(forms))
            write_json(options.out / 'transplants.json', results, indent=1)
    shown = [key for key in results[0]['metrics'] if key.endswith(('mAP', 'mIoU'))]
    table = Table('start', 'distance', *shown)
    for result in results:
        table.add_row(result['form'], f'{result["distance"]}', *(str(result['metrics'].get(key, '')) for key in shown))
    console.print(table)
    console.print(options.out / 'transplants.json')


if __name__ == '__main__':
    main()

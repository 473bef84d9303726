#!/usr/bin/env python3
"""Fold a trained network: write OUT.pth and its config OUT.py, which the toolkit loads without mmws."""

import argparse
from pathlib import Path

try:
    from mmws import fold
    from mmws.checkpoint import write_checkpoint
    from mmws.cli.config import load_config
    from mmws.cli.folded_config import check_stock, to_stock
    from mmws.cli.load_model import load_trained
    from mmws.errors import one_line_errors
    from mmws.files import atomic_write, check_output
    from mmws.version import __version__
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def fold_checkpoint(config_path: str, checkpoint_path: str, out: Path) -> None:
    check_output(f'{out}.pth', checkpoint_path)
    check_output(f'{out}.py', config_path)
    config = load_config(config_path)
    model, checkpoint = load_trained(config, checkpoint_path)
    folded = fold(model)
    stock = to_stock(config, folded)
    check_stock(stock, folded)
    meta = checkpoint.meta
    kept = {key: meta[key] for key in ('dataset_meta', 'CLASSES', 'PALETTE') if key in meta}
    source = {'source': Path(checkpoint_path).name, 'sha256': checkpoint.sha256, 'folded_by': f'mmws {__version__}'}
    with atomic_write(f'{out}.py') as partial:
        partial.write_text(f'{stock.pretty_text.rstrip()}\n')
        write_checkpoint(f'{out}.pth', folded.state_dict(), {**kept, 'folded': source})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the training')
    parser.add_argument('checkpoint', help='trained weights')
    parser.add_argument('out', type=Path, help='path of both files without the suffix')
    arguments = parser.parse_args()
    with one_line_errors():
        fold_checkpoint(arguments.config, arguments.checkpoint, arguments.out)
    print(f'{arguments.out}.pth\n{arguments.out}.py')


if __name__ == '__main__':
    main()

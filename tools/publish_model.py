#!/usr/bin/env python3
"""Publish a trained model with mmdet's publish_model.py, and write a model card next to it."""

import argparse
from pathlib import Path

try:
    from mmws.cli.config import load_config
    from mmws.cli.load_model import load_trained
    from mmws.cli.publish import model_card, publish_model
    from mmws.errors import one_line_errors
    from mmws.files import check_output, write_text
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the training')
    parser.add_argument('checkpoint', type=Path, help='trained weights; summary.json in the same folder is used')
    parser.add_argument('out', type=Path, help='output: .pth; the hash is added to the name')
    arguments = parser.parse_args()
    with one_line_errors():
        check_output(arguments.out, arguments.checkpoint, endings=('.pth',))
        config = load_config(arguments.config)
        model, checkpoint = load_trained(config, arguments.checkpoint)
        card = model_card(config, model, checkpoint.meta, arguments.checkpoint.absolute().parent)
        written = publish_model(arguments.checkpoint, arguments.out)
        write_text(written.with_suffix('.md'), card)
    print(f'{written}\n{written.with_suffix(".md")}')


if __name__ == '__main__':
    main()

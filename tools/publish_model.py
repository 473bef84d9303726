#!/usr/bin/env python3
"""Publish a trained model with mmdet's publish_model.py, and write a model card beside it."""

import argparse
from pathlib import Path

try:
    from mmws.errors import WSError
    from mmws.publish import model_card, publish_model
    from mmws.trained import load_config, load_trained
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; run `make setup` and `source .venv/bin/activate`') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', type=Path, help='summary.json is looked for beside it')
    parser.add_argument('out', type=Path, help='.pth; the hash goes in before the ending')
    arguments = parser.parse_args()
    try:
        if not arguments.out.absolute().parent.is_dir():
            raise WSError(f'{arguments.out}: there is no folder {arguments.out.parent}')
        config = load_config(arguments.config)
        model, checkpoint = load_trained(config, arguments.checkpoint)
        written = publish_model(arguments.checkpoint, arguments.out)
        card = model_card(config, model, checkpoint.rest.get('meta', {}), arguments.checkpoint.absolute().parent)
        written.with_suffix('.md').write_text(card)
    except (WSError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    print(f'{written}\n{written.with_suffix(".md")}')


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
"""Turn the weights of a BatchNorm network into weights of the GN+WS network of CONFIG, with a few images, no labels.

CONFIG has a type with the mmws. prefix. CHECKPOINT is of the same network with BatchNorm, or of its backbone. OUT is
for `load_from`, or for ws=dict(pretrained=...) if CHECKPOINT is of a backbone. CHECKPOINT is not changed.
"""

import argparse
from pathlib import Path

try:
    from mmws.cli.config import CfgOptions, load_config
    from mmws.cli.transplant_checkpoint import transplant_checkpoint
    from mmws.errors import one_line_errors
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the converted network')
    parser.add_argument('checkpoint', help='weights of the BatchNorm network: torchvision, timm, mmpretrain, OpenMMLab')
    parser.add_argument('out', type=Path, help='.pth or .safetensors file to write')
    parser.add_argument('--images', type=Path, help="folder of images; default: the config's training images")
    parser.add_argument('--number', type=positive, default=64, help='images for the transplant, default 64')
    parser.add_argument('--distill', type=positive, default=0, metavar='STEPS',
                        help='then train for STEPS on the images to give the outputs of the BatchNorm network; '
                             'resumes from OUT.distill after an interrupt, which can be deleted afterwards')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='NAME=VALUE',
                        help='override values of the config')
    arguments = parser.parse_args()
    with one_line_errors():
        needs = ['model', 'default_scope']
        if arguments.distill or not arguments.images:
            needs.append('train_dataloader')
        config = load_config(arguments.config, arguments.cfg_options, needs)
        report = transplant_checkpoint(config, arguments.checkpoint, arguments.out, arguments.images, arguments.number,
                                       arguments.distill)
    print(f'{report}\n{arguments.out}')


if __name__ == '__main__':
    main()

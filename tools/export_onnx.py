#!/usr/bin/env python3
"""Fold a trained segmenter, or backbone and neck of a detector, export it to ONNX and check it with onnxruntime.

Input: "image", float32, (batch, 3, height, width), as the config's data_preprocessor returns it: channels in the order
that its bgr_to_rgb gives, minus its mean, divided by its std, padded to its pad_size_divisor.
Outputs: "logits" of a segmenter, at the size of the image. Feature maps of a detector: "c2", "c3", ... of a backbone,
"p2", "p3", ... after a neck; the first number is log2 of the stride.
"""

import argparse
from pathlib import Path

try:
    from mmws import fold
    from mmws.cli.config import load_config
    from mmws.cli.load_model import load_trained
    from mmws.cli.onnx_export import export_onnx
    from mmws.errors import WSError, one_line_errors
    from mmws.files import atomic_write, check_output
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the training')
    parser.add_argument('checkpoint', help='trained weights')
    parser.add_argument('out', type=Path, help='output: .onnx')
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help='fix the size of the images, for networks whose layers depend on it, such as PSPNet')
    arguments = parser.parse_args()
    with one_line_errors():
        check_output(arguments.out, endings=('.onnx',))
        if arguments.size and min(arguments.size) < 1:
            raise WSError(f'--size: expected two positive numbers, got {" ".join(map(str, arguments.size))}')
        model, _ = load_trained(load_config(arguments.config), arguments.checkpoint)
        content = export_onnx(fold(model), arguments.size)
        with atomic_write(arguments.out) as partial:
            partial.write_bytes(content)
    print(arguments.out)


if __name__ == '__main__':
    main()

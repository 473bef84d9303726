#!/usr/bin/env python3
"""Fold a trained segmenter, or backbone and neck of a detector, export it to ONNX and check it with onnxruntime."""

import argparse
from pathlib import Path

try:
    from mmws import fold
    from mmws.cli.config import load_config
    from mmws.cli.load_model import load_trained
    from mmws.cli.onnx_export import export_onnx
    from mmws.errors import one_line_errors
    from mmws.files import atomic_write, check_output
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the training')
    parser.add_argument('checkpoint', help='trained weights')
    parser.add_argument('out', type=Path, help='output: .onnx')
    arguments = parser.parse_args()
    with one_line_errors():
        check_output(arguments.out, endings=('.onnx',))
        model, _ = load_trained(load_config(arguments.config), arguments.checkpoint)
        content = export_onnx(fold(model))
        with atomic_write(arguments.out) as partial:
            partial.write_bytes(content)
    print(arguments.out)


if __name__ == '__main__':
    main()

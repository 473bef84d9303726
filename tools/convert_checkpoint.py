#!/usr/bin/env python3
"""Convert a foreign GN+WS checkpoint to the toolkit's format. The names of its tensors identify the format."""

import argparse

try:
    from rich.console import Console

    from mmws.checkpoint import convert_checkpoint, write_checkpoint
    from mmws.checkpoint.writer import ENDINGS
    from mmws.errors import one_line_errors
    from mmws.files import check_output
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='input: .pth.tar, .pth, .pkl or .safetensors')
    parser.add_argument('dst', help='output: .pth or .safetensors')
    parser.add_argument('--to-rgb', action='store_true', help='reorder the input channels of a network trained on BGR')
    arguments = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    with one_line_errors(), console.status(f'converting {arguments.src}'):
        check_output(arguments.dst, arguments.src, endings=ENDINGS)
        converted = convert_checkpoint(arguments.src, arguments.to_rgb)
        write_checkpoint(arguments.dst, converted.state_dict, converted.meta)
    about = converted.meta['mmws']
    console.print(f'found {about["format"]}: {about["network"]}, {len(converted.state_dict)} tensors')
    console.print(f'input {about["input"]}', markup=False)
    for name, reason in about['left_over'].items():
        console.print(f'left over {name}: {reason}', markup=False)
    console.print(f'{arguments.dst}', markup=False)


if __name__ == '__main__':
    main()

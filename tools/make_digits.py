#!/usr/bin/env python3
"""Make the digits dataset: handwritten digits on photographs, in COCO format. Takes seconds."""

import argparse

try:
    from mmws.data.digits import make_digits
    from mmws.errors import one_line_errors
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('root', nargs='?', default='data/digits', help='folder to write to')
    parser.add_argument('--train', type=int, default=1200, help='number of training images')
    parser.add_argument('--val', type=int, default=100, help='number of validation images')
    parser.add_argument('--size', type=int, default=256, help='height and width of the images in pixels')
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    with one_line_errors():
        print(f'digits: {make_digits(**vars(parser.parse_args()))}')


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
"""Convert the nuclei of the Data Science Bowl 2018 to COCO format. SRC is a clone of the public repository."""

import argparse

try:
    from mmws.data.nuclei import NUCLEI_REPOSITORY, convert_nuclei
    from mmws.errors import one_line_errors
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='SRC', help=f'clone of {NUCLEI_REPOSITORY}')
    parser.add_argument('target', metavar='DST', help='folder to write; it must not exist')
    options = parser.parse_args()
    with one_line_errors():
        print(f'nuclei: {convert_nuclei(options.source, options.target)}')


if __name__ == '__main__':
    main()

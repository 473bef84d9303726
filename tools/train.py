#!/usr/bin/env python3
"""Train with the toolkit's own tools/train.py and its options: default_scope of the config names the toolkit."""

try:
    from mmws.cli.run_toolkit import run_script
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None

if __name__ == '__main__':
    run_script('train.py')

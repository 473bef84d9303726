#!/usr/bin/env python3
"""Run the toolkit's own tools/test.py: mmdet's or mmseg's, as the config's default scope says, with its options."""

try:
    from mmws.cli.run_toolkit import hand_over
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; run `make setup` and `source .venv/bin/activate`') from None

if __name__ == '__main__':
    hand_over('test.py')

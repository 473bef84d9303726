"""The environments of ``make setup``: the Python, the distribution of mmcv and the pinned versions of each."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Stack:
    """An environment that ``make setup STACK=<name>`` makes."""

    python: str
    mmcv: str  # distribution with mmcv's operators
    locked: bool = False  # the versions are in *.lock, with hashes; else in <name>.txt


STACKS = {
    'onedl': Stack('3.11', 'onedl-mmcv', locked=True),
    'openmmlab': Stack('3.11', 'mmcv', locked=True),
    'guide': Stack('3.8', 'mmcv'),
    'prebuilt': Stack('3.10', 'mmcv'),
    'oldest': Stack('3.8', 'mmcv'),
    'newest': Stack('3.13', 'onedl-mmcv'),
}


def pin_files(name: str) -> list[Path]:
    """Return the files with the pinned versions of a stack. Without hashes, one file has all of them."""
    locks = [HERE / f'{part}.lock' for part in ('torch', 'common', name)]
    return locks if STACKS[name].locked else [HERE / f'{name}.txt']


def read_pins(files: list[Path]) -> dict[str, str]:
    """Return each distribution's entry, in pip's format: its version and, in a lock file, its hashes."""
    entries = re.findall(r'^([\w.-]+)(==.*\n(?: .*\n)*)', ''.join(path.read_text() for path in files), re.M)
    return {name.lower().replace('_', '-'): name + pin for name, pin in entries}


def find_python(version: str) -> str:
    """Return a Python of this minor version: the one that runs this script, or one of PATH or pyenv."""
    pyenv = sorted(Path.home().glob(f'.pyenv/versions/{version}.*/bin/python'))
    for python in (sys.executable, shutil.which(f'python{version}'), *map(str, pyenv)):
        if python and _minor_version(python) == version:
            return python
    sys.exit(f'Python {version} not found on PATH and in ~/.pyenv/versions; install it, for example with '
             f'`pyenv install {version}` or `uv python install {version}`, or from https://www.python.org/downloads')


def _minor_version(python: str) -> str:
    """Return for example '3.8', or an empty string if the command fails, as pyenv's can."""
    code = 'import sys; print("%d.%d" % sys.version_info[:2])'
    return subprocess.run([python, '-c', code], capture_output=True, text=True).stdout.strip()

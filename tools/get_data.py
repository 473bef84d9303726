#!/usr/bin/env python3
"""Get the real images of the examples into data/: clone their repositories and convert them.

With the environment variable MMWS_DATA, link the folders in it instead. Its folders nuclei/ and camvid/ are as the
converters in tools/dataset_converters/ write them.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

try:
    from mmws.data.camvid import CAMVID_REPOSITORY, convert_camvid
    from mmws.data.nuclei import NUCLEI_REPOSITORY, convert_nuclei
    from mmws.errors import WSError, near_matches, one_line_errors
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: {error}; install the missing package (see Install in README.md)') from None

IMAGES = Path('images', 'train')
DATASETS = {'nuclei': (NUCLEI_REPOSITORY, convert_nuclei), 'camvid': (CAMVID_REPOSITORY, convert_camvid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'{" or ".join(DATASETS)}; default: all')
    names = parser.parse_args().names or list(DATASETS)
    with one_line_errors():
        for name in names:
            if name not in DATASETS:
                raise WSError(f'unknown data {name!r}; {near_matches(name, DATASETS)}')
            print(f'{name}: {get(name, Path("data", name))}')


def get(name: str, target: Path) -> Path:
    """Return the folder of a dataset; link it, or clone and convert it, if it is missing."""
    if (target / IMAGES).is_dir():
        return target
    if target.exists() or target.is_symlink():
        raise WSError(f'{target} has no folder {IMAGES}; remove it, and run this again')
    shared = os.environ.get('MMWS_DATA')
    if shared and not Path(shared, name, IMAGES).is_dir():
        raise WSError(f'MMWS_DATA: {Path(shared, name)} has no folder {IMAGES}; expected a folder that '
                      f'tools/dataset_converters/{name}.py made')
    target.parent.mkdir(exist_ok=True)
    if shared:
        target.symlink_to(Path(shared, name).absolute())
        return target
    repository, convert = DATASETS[name]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        clone(repository, folder, target)
        return convert(folder, target)


def clone(repository: str, folder: str, target: Path) -> None:
    command = ['git', 'clone', '--depth', '1', '--progress', repository, folder]
    try:
        failed = subprocess.run(command, env={**os.environ, 'GIT_TERMINAL_PROMPT': '0'}).returncode
    except FileNotFoundError:  # git is not installed
        failed = True
    if failed:
        raise WSError(f'cannot clone {repository}; clone it on another machine and run tools/dataset_converters/'
                      f'{target.name}.py CLONE {target}, or set MMWS_DATA to a folder with that result')


if __name__ == '__main__':
    main()

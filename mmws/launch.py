"""Hand a command line over to the script that the toolkit installs, after looking for the files it will need."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction

from mmws.errors import WSError

__all__ = ['hand_over', 'missing_data', 'toolkit_tool']

HOW_TO_GET = {
    'coco': 'get COCO 2017 from https://cocodataset.org/#download',
    'VOCdevkit': 'get VOC 2012 from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/',
    'digits': 'run `python tools/make_digits.py`',
}


def hand_over(script: str) -> None:
    """Run the toolkit's ``tools/<script>`` with the arguments of this process.

    Args:
        script: ``train.py`` or ``test.py``.

    Raises:
        SystemExit: with one line and what to do, if the config, the checkpoint or the data are missing, or a
            ``mmws.`` option in the config is wrong.
    """
    try:
        sys.argv[0] = str(_check(script, sys.argv[1:]))
        runpy.run_path(sys.argv[0], run_name='__main__')
    except WSError as error:
        sys.exit(f'error: {error}')


def toolkit_tool(config: Config, script: str) -> Path:
    """Return the path of a script of the toolkit that the config's default scope names.

    Raises:
        WSError: if the config names no scope, or the toolkit is not installed.
    """
    scope = config.get('default_scope')
    if not scope:
        raise WSError(f"{config.filename}: no default_scope says which toolkit to run; add default_scope = 'mmdet' "
                      "(or 'mmseg')")
    spec = find_spec(scope)
    folder = Path(spec.origin or '').parent if spec else Path()
    tools = [path for path in (folder / '.mim' / 'tools' / script, folder.parent / 'tools' / script) if path.is_file()]
    if not spec or not tools:
        raise WSError(f'{config.filename} is for {scope}, whose tools/{script} is not installed; '
                      'see the README for how to install the toolkits')
    return tools[0]


def missing_data(config: Config, loaders: tuple[str, ...]) -> list[Path]:
    """Return the annotation files and image folders that the data loaders name and that are not there."""
    paths = [path for name in loaders for dataset in _datasets(config.get(name)) for path in _files(dataset)]
    return [path for path in dict.fromkeys(paths) if not path.exists()]


def _check(script: str, arguments: list[str]) -> Path:
    """Look for all the script will need and return its path."""
    takes = ['CONFIG', 'CHECKPOINT'] if 'test' in script else ['CONFIG']
    given = arguments[:len(takes)]
    if len(given) < len(takes) or given[0].startswith('-'):
        raise WSError(f'expected tools/{script} {" ".join(takes)} [OPTIONS], where the options are those of the '
                      f"toolkit's own tools/{script}; got {' '.join(arguments) or 'nothing'}")
    for what, name in zip(takes, given, strict=True):
        if '://' not in name and not Path(name).is_file():
            raise WSError(f'there is no {what.lower()} {name}' + _beside(Path(name)))
    config = Config.fromfile(given[0])
    if '--cfg-options' in arguments:
        config.merge_from_dict(_cfg_options(arguments))
    loaders = ('test_dataloader',) if 'test' in script else ('train_dataloader', 'val_dataloader')
    missing = missing_data(config, loaders)
    if missing:
        advice = next((how for key, how in HOW_TO_GET.items() if key in str(missing[0])), 'put the data there')
        raise WSError(f'{given[0]} needs {missing[0]}, which is not there; {advice}, or point data_root elsewhere')
    return toolkit_tool(config, script)


def _beside(path: Path) -> str:
    there = sorted(other.name for other in path.parent.glob(f'*{path.suffix}')) if path.parent.is_dir() else []
    return f'; {path.parent} has {", ".join(there[:12])}' if there else ''


def _cfg_options(arguments: list[str]) -> dict[str, Any]:
    """What ``--cfg-options`` says, read as the toolkit reads it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options: dict[str, Any] = parser.parse_known_args(arguments)[0].cfg_options
    return options


def _datasets(config: Any) -> Iterator[ConfigDict]:
    """The datasets in the config of a data loader, those inside wrappers and lists too."""
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _datasets(part)
    elif isinstance(config, dict):
        if 'pipeline' in config and ('ann_file' in config or 'data_prefix' in config):
            yield config
        for part in config.values():
            yield from _datasets(part)


def _files(dataset: ConfigDict) -> Iterator[Path]:
    if dataset.get('backend_args'):
        return  # on a server
    root = Path(dataset.get('data_root') or '')
    prefixes = dataset.get('data_prefix') or {}
    for name in [dataset.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]:
        if name and '://' not in f'{root}{name}':
            yield root / name


if __name__ == '__main__':  # tools/dist_*.sh ask for the script to run
    try:
        print(_check(sys.argv[1], sys.argv[2:]))
    except WSError as error:
        sys.exit(f'error: {error}')

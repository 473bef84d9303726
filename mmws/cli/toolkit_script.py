"""Find the script that a toolkit installs, such as ``tools/train.py``, and parse its arguments as it does."""

from __future__ import annotations

import argparse
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmws.cli.config import CfgOptions, load_config, silence
from mmws.errors import WSError
from mmws.openmmlab.toolkits import SCOPE_ADVICE, TOOLKITS, install_advice

__all__ = ['parse_arguments', 'toolkit_script_path']

CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def toolkit_script_path(config: Config, script: str) -> Path:
    """Return the path of ``tools/<script>`` of the toolkit that the config's ``default_scope`` names.

    Raises:
        WSError: if the config has no ``default_scope``, or the script is not installed.
    """
    scope = config.get('default_scope')
    if not scope:
        raise WSError(f'{config.filename} has no default_scope; {SCOPE_ADVICE}')
    spec = find_spec(scope)
    folder = Path(spec.origin or '').parent if spec else Path()
    tools = [path for path in (folder / '.mim' / 'tools' / script, folder.parent / 'tools' / script) if path.is_file()]
    if not spec or not tools:
        raise WSError(f'{scope}: its tools/{script} is not installed; {install_advice(scope)}, '
                      'see Install in README.md')
    return tools[0]


def parse_arguments(script: str, arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments with the parser of the toolkit's script, whose help and usage errors are the toolkit's.

    The arguments of ``dist_train.sh`` are parsed as those of the ``train.py`` that it starts.
    """
    if 'dist' in script:
        arguments = _without_gpus(script, arguments)
        script = script.replace('dist_', '').replace('.sh', '.py')
    path = toolkit_script_path(Config({'default_scope': _scope(arguments)}), script)
    with silence():
        parse_args = runpy.run_path(str(path))['parse_args']
    before = sys.argv
    sys.argv = [script, *arguments]
    try:
        return parse_args()  # type: ignore[no-any-return]
    finally:
        sys.argv = before


def _without_gpus(script: str, arguments: list[str]) -> list[str]:
    """Return the arguments that ``dist_train.sh CONFIG GPUS [OPTIONS]`` gives to ``train.py``."""
    names = ['CONFIG', 'CHECKPOINT', 'GPUS'] if 'test' in script else ['CONFIG', 'GPUS']
    given, options = arguments[:len(names)], arguments[len(names):]
    if len(given) < len(names) or any(name.startswith('-') for name in given):
        raise WSError(f"expected tools/{script} {' '.join(names)} [OPTIONS], with the options of the toolkit's own "
                      f"tools/{script}; got {' '.join(arguments) or 'no arguments'}")
    return [*given[:-1], '--launcher', 'pytorch', *options]


def _scope(arguments: list[str]) -> str:
    """Return the toolkit of the config among the arguments, or the first one that is installed.

    Only the toolkit's parser says which argument is the config, so this is a guess from the names of the files.
    """
    options = _cfg_options(arguments)
    names = [name for name in arguments if Path(name).suffix in CONFIG_SUFFIXES and name[0] != '-' and '=' not in name]
    first = next((scope for scope in TOOLKITS if find_spec(scope)), 'mmdet')
    if not names:
        print(f'no config given; the options of {first} are:', file=sys.stderr)
        return first
    names.sort(key=lambda name: not name.endswith('.py'))  # --out may name a .json
    return str(load_config(names[0], options, needs=()).get('default_scope') or first)


def _cfg_options(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions)
    options: dict[str, Any] = parser.parse_known_args(arguments)[0].cfg_options
    return options

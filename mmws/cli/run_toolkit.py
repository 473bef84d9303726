"""Hand a command line over to the script that the toolkit installs, after looking for the files it will need."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed

from mmws.cli.check_config import check_classes, check_data, check_types
from mmws.cli.check_data import check_content
from mmws.cli.config import CfgOptions, load_config, silence
from mmws.cli.load_model import check_model
from mmws.errors import WSError, one_line_errors
from mmws.files import check_input
from mmws.openmmlab.safe_globals import allow_log_history

__all__ = ['hand_over', 'toolkit_tool']


def hand_over(script: str) -> None:
    """Run the toolkit's ``tools/<script>`` with the arguments of this process.

    Args:
        script: ``train.py`` or ``test.py``.

    Raises:
        SystemExit: with one line and what to do, if the config, the checkpoint or the data are missing or wrong.
    """
    if sys.argv[1:] and sys.argv[1].startswith('--local'):  # torch's launcher puts the rank first
        sys.argv.append(sys.argv.pop(1))
    with one_line_errors():
        sys.argv[0] = str(_check(script, sys.argv[1:]))
        joined = _join_on_cpu()
        allow_log_history()  # a config without any mmws type resumes on upstream too
        runpy.run_path(sys.argv[0], run_name='__main__')
        if joined:
            distributed.barrier()  # a process that goes while others talk makes them fail
            distributed.destroy_process_group()


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


def _join_on_cpu() -> bool:
    """Join the processes of torch's launcher over gloo where there is no GPU, which mmengine's own way asks for."""
    join = {'LOCAL_RANK', 'WORLD_SIZE'} <= os.environ.keys() and '--launcher' in sys.argv and get_device() == 'cpu'
    if join:
        distributed.init_process_group('gloo')
        sys.argv += ['--cfg-options', 'model_wrapper_cfg.type=MMDistributedDataParallel',
                     'model_wrapper_cfg.device_ids=None']
    return join


def _check(script: str, arguments: list[str]) -> Path:
    """Look for all the script will need and return its path."""
    takes = ['CONFIG', 'CHECKPOINT'] if 'test' in script else ['CONFIG']
    given = arguments[:len(takes)]
    if len(given) < len(takes) or given[0].startswith('-'):
        raise WSError(f'expected tools/{script} {" ".join(takes)} [OPTIONS], where the options are those of the '
                      f"toolkit's own tools/{script}; got {' '.join(arguments) or 'nothing'}")
    tests = 'test' in script
    runs = ('test_dataloader', 'test_cfg') if tests else ('train_dataloader', 'train_cfg', 'optim_wrapper')
    config = load_config(given[0], _cfg_options(arguments), needs=('model', 'default_scope', *runs))
    checkpoint = str(given[1] if tests else config.get('load_from') or '')
    if checkpoint and '://' not in checkpoint:
        check_input('checkpoint', checkpoint)
    tool = toolkit_tool(config, script)
    loaders = ('test_dataloader',) if tests else ('train_dataloader', 'val_dataloader')
    check_data(config, loaders)
    with silence():  # the toolkits warn and print on being imported
        check_types(config)
    check_classes(config, loaders[0])
    check_content(config, loaders)
    if 'dist' not in script and '--launcher' not in arguments:  # some norms need the other processes to be built
        check_model(config, '' if config.get('resume') and not tests else checkpoint, to_the_last=tests)
    return tool


def _cfg_options(arguments: list[str]) -> dict[str, Any]:
    """What ``--cfg-options`` says, read as the toolkit reads it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions)
    options: dict[str, Any] = parser.parse_known_args(arguments)[0].cfg_options
    return options


if __name__ == '__main__':  # tools/dist_*.sh ask for the script to run
    with one_line_errors():
        print(_check(sys.argv[1], sys.argv[2:]))

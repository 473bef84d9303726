"""Check the inputs of a run, then run the script that the toolkit installs, such as ``tools/train.py``."""

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

from mmws.cli.check_config import check_classes, check_types
from mmws.cli.check_data import check_content, check_files
from mmws.cli.config import CfgOptions, load_config
from mmws.cli.load_model import check_model
from mmws.errors import WSError, one_line_errors
from mmws.files import check_input
from mmws.openmmlab.safe_globals import allow_log_history
from mmws.openmmlab.toolkits import SCOPE_ADVICE, install_advice

__all__ = ['run_script', 'toolkit_script_path']


def run_script(name: str) -> None:
    """Run the toolkit's ``tools/<name>``, ``train.py`` or ``test.py``, with the arguments of this process.

    Raises:
        SystemExit: with a one-line error, if the config, the checkpoint or the data are missing or wrong.
    """
    if sys.argv[1:] and sys.argv[1].startswith('--local'):  # torch's launcher puts the rank first
        sys.argv.append(sys.argv.pop(1))
    with one_line_errors():
        sys.argv[0] = str(_check_run(name, sys.argv[1:]))
        uses_gloo = _init_gloo()
        allow_log_history()  # a config without mmws types has to resume under upstream's mmengine too
        runpy.run_path(sys.argv[0], run_name='__main__')
        if uses_gloo:
            distributed.barrier()  # a process that exits early makes the others fail
            distributed.destroy_process_group()


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


def _init_gloo() -> bool:
    """Initialize gloo under torch's launcher where there is no GPU: mmengine would ask for nccl."""
    uses_gloo = {'LOCAL_RANK', 'WORLD_SIZE'} <= os.environ.keys() and '--launcher' in sys.argv and get_device() == 'cpu'
    if uses_gloo:
        distributed.init_process_group('gloo')
        sys.argv += ['--cfg-options', 'model_wrapper_cfg.type=MMDistributedDataParallel',
                     'model_wrapper_cfg.device_ids=None']
    return uses_gloo


def _check_run(script: str, arguments: list[str]) -> Path:
    """Check everything that the script needs and return its path."""
    is_test = 'test' in script
    names = ['CONFIG', 'CHECKPOINT'] if is_test else ['CONFIG']
    given = arguments[:len(names)]
    if len(given) < len(names) or given[0].startswith('-'):
        raise WSError(f"expected tools/{script} {' '.join(names)} [OPTIONS], with the options of the toolkit's own "
                      f"tools/{script}; got {' '.join(arguments) or 'no arguments'}")
    needs = ('test_dataloader', 'test_cfg') if is_test else ('train_dataloader', 'train_cfg', 'optim_wrapper')
    config = load_config(given[0], _cfg_options(arguments), needs=('model', 'default_scope', *needs))
    checkpoint = str(given[1] if is_test else config.get('load_from') or '')
    if checkpoint and '://' not in checkpoint:
        check_input('checkpoint', checkpoint)
    path = toolkit_script_path(config, script)
    loaders = ('test_dataloader',) if is_test else ('train_dataloader', 'val_dataloader')
    check_files(config, loaders)
    check_types(config)
    check_classes(config, loaders[0])
    check_content(config, loaders)
    if 'dist' not in script and '--launcher' not in arguments:  # SyncBatchNorm needs the process group
        check_model(config, '' if config.get('resume') and not is_test else checkpoint, needs_all_weights=is_test)
    return path


def _cfg_options(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions)
    options: dict[str, Any] = parser.parse_known_args(arguments)[0].cfg_options
    return options


if __name__ == '__main__':  # tools/dist_*.sh read the printed path
    with one_line_errors():
        print(_check_run(sys.argv[1], sys.argv[2:]))

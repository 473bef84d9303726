"""Check the inputs of a run, then run the script that the toolkit installs, such as ``tools/train.py``."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODEL_WRAPPERS
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mmws.cli.check_config import check_classes, check_types
from mmws.cli.check_data import check_content, check_files
from mmws.cli.config import load_config
from mmws.cli.load_model import check_model
from mmws.cli.toolkit_script import parse_arguments, toolkit_script_path
from mmws.errors import one_line_errors
from mmws.files import check_input
from mmws.openmmlab.safe_globals import allow_log_history

__all__ = ['run_script']


def run_script(name: str) -> None:
    """Run the toolkit's ``tools/<name>``, ``train.py`` or ``test.py``, with the arguments of this process.

    Raises:
        SystemExit: with a one-line error, if the config, the checkpoint or the data are missing or wrong; with the
            toolkit's own help or usage error, if the options ask for it or are wrong.
    """
    with one_line_errors():
        path, config, options = _check_run(name, sys.argv[1:])
        sys.argv[0] = str(path)
        uses_gloo = options.launcher == 'pytorch' and 'WORLD_SIZE' in os.environ and get_device() == 'cpu'
        if uses_gloo:  # mmengine would ask for nccl
            distributed.init_process_group('gloo')
            sys.argv += _cpu_wrapper(config)
        allow_log_history()  # a config without mmws types has to resume under upstream's mmengine too
        runpy.run_path(sys.argv[0], run_name='__main__')
        if uses_gloo:
            distributed.barrier()  # a process that exits early makes the others fail
            distributed.destroy_process_group()


def _cpu_wrapper(config: Config) -> list[str]:
    """Return the ``--cfg-options`` with which mmengine wraps the model on CPU. What the config sets is not replaced.

    mmengine itself adds the GPU of the process, ``device_ids``, to any wrapper that is a DistributedDataParallel.
    """
    wrapper = config.get('model_wrapper_cfg') or {}
    if wrapper:
        kind = wrapper.get('type', 'MMDistributedDataParallel')
        kind = MODEL_WRAPPERS.get(kind) if isinstance(kind, str) else kind
        values: dict[str, Any] = {'device_ids': None} if issubclass(kind, DistributedDataParallel) else {}
    else:  # mmengine's wrapper for a config without one, except for the GPU
        values = {'type': 'MMDistributedDataParallel', 'device_ids': None, 'broadcast_buffers': False,
                  'find_unused_parameters': config.get('find_unused_parameters', False)}
        if 'model_wrapper_cfg' in config:
            values['_delete_'] = True  # a mapping cannot be merged into None
    pairs = [f'model_wrapper_cfg.{name}={value}' for name, value in values.items() if name not in wrapper]
    return ['--cfg-options', *pairs] if pairs else []


def _check_run(script: str, arguments: list[str]) -> tuple[Path, Config, argparse.Namespace]:
    """Check everything that the script needs; return its path, the config and the parsed arguments."""
    options = parse_arguments(script, arguments)
    is_test = 'test' in script
    needs = ('test_dataloader', 'test_cfg') if is_test else ('train_dataloader', 'train_cfg', 'optim_wrapper')
    config = load_config(options.config, options.cfg_options, needs=('model', 'default_scope', *needs))
    resume = None if is_test else options.resume
    checkpoint = str(options.checkpoint if is_test else resume if resume not in (None, True, False, 'auto') else
                     config.get('load_from') or '')
    if checkpoint and '://' not in checkpoint:
        check_input('checkpoint', checkpoint)
    path = toolkit_script_path(config, script)
    loaders = ('test_dataloader',) if is_test else ('train_dataloader', 'val_dataloader')
    if getattr(options, 'no_validate', False):  # mmpretrain's option removes val_dataloader
        loaders = loaders[:1]
    check_files(config, loaders)
    check_types(config)
    check_classes(config, loaders[0])
    check_content(config, loaders)
    if options.launcher == 'none':  # SyncBatchNorm needs the process group
        resumes = not is_test and (resume or config.get('resume'))
        check_model(config, '' if resumes else checkpoint, needs_all_weights=is_test)
    return path, config, options


if __name__ == '__main__':  # tools/dist_*.sh read the printed path
    with one_line_errors(), redirect_stdout(sys.stderr):
        script_path, _, _ = _check_run(sys.argv[1], sys.argv[2:])
    print(script_path)

"""A short training on any config of the toolkits, to look at it rather than to keep it."""

from __future__ import annotations

import copy
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmws.cli.check_config import check_classes, check_data
from mmws.cli.check_data import check_content
from mmws.cli.config import CfgOptions, load_config
from mmws.cli.load_model import check_model
from mmws.errors import WSError

__all__ = ['read_config', 'read_configs', 'short_run']


def read_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config, with ``--cfg-options`` over it, and see whether it can be trained here.

    Raises:
        WSError: if it is not there, its data are not, or it names no learning rate.
    """
    config = load_config(path, options)
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    if not isinstance(optimizer.get('lr'), (int, float)) or not optimizer['lr']:
        raise WSError(f'{path} has no optim_wrapper.optimizer.lr')
    check_data(config, ['train_dataloader'])
    check_classes(config, 'train_dataloader')
    check_content(config, ['train_dataloader'])
    check_model(config)
    return config


def read_configs(path: str, options: dict[str, Any], against: Sequence[Sequence[str]]) -> dict[str, Config]:
    """Read a config, and again with each of ``against`` over it, which are ``NAME=VALUE`` as ``--cfg-options`` takes.

    Returns:
        The configs: the first by the stem of its path, the others by what differs.
    """
    parser = ArgumentParser()
    parser.add_argument('--options', nargs='+', action=CfgOptions)
    others = {', '.join(each): options | parser.parse_args(['--options', *each]).options for each in against}
    return {name: read_config(path, each) for name, each in ({Path(path).stem: options} | others).items()}


def short_run(config: Config, hook: Hook, steps: int, work_dir: Path, schedule: list[dict[str, Any]]) -> None:
    """Train for ``steps`` iterations with ``hook`` and without validation or checkpoints.

    Args:
        config: left as it is.
        hook: looks on.
        steps: iterations.
        work_dir: of mmengine's log.
        schedule: takes the place of the config's ``param_scheduler``; empty, the learning rate stays the optimizer's.
    """
    config = copy.deepcopy(config)
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader', 'test_evaluator'):
        config[key] = None
    config.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': steps}
    config.param_scheduler = schedule
    config.auto_scale_lr = None
    left_out = ('visualization', 'guard')  # a range test means to diverge
    hooks = {name: hook for name, hook in (config.get('default_hooks') or {}).items() if name not in left_out}
    config.default_hooks = {**hooks, 'checkpoint': None,
                            'logger': {'type': 'LoggerHook', 'interval': max(steps // 10, 1)}}
    config.log_processor = {'by_epoch': False}
    config.resume, config.work_dir = False, str(work_dir)
    config.experiment_name = f'{work_dir.name}_{time.time_ns()}'  # mmengine keeps things under it in this process
    runner = Runner.from_cfg(config)
    runner.register_hook(hook)
    runner.train()

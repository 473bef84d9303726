"""Short trainings for measurements: config checks, a loss recorder, the run."""

from __future__ import annotations

import copy
import math
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmws.cli.check_config import check_classes
from mmws.cli.check_data import check_content, check_files
from mmws.cli.config import CfgOptions, load_config
from mmws.cli.load_model import check_model
from mmws.errors import WSError

__all__ = ['LossRecorder', 'base_rate', 'check_interval', 'check_training', 'load_training_config',
           'load_training_configs', 'short_run', 'test_runner']


def check_training(config: Config, loaders: Sequence[str] = ('train_dataloader',)) -> None:
    """Check the data, the classes and the model of a config; raise WSError if a training with it would fail."""
    check_files(config, loaders)
    check_classes(config, 'train_dataloader')
    check_content(config, loaders)
    check_model(config)


def check_interval(steps: int, every: int) -> None:
    """Check the options ``--steps`` and ``--every``; raise WSError if no step would be measured."""
    if steps < 1:
        raise WSError(f'--steps: expected at least 1, got {steps}')
    if not 0 < every <= steps:
        raise WSError(f'--every: expected 1 to {steps}, the number of steps, got {every}')


def load_training_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Load a config with ``--cfg-options`` merged in; raise WSError if it cannot be trained or has no learning rate."""
    config = load_config(path, options)
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    if not isinstance(optimizer.get('lr'), (int, float)) or not optimizer['lr']:
        raise WSError(f'{path} has no optim_wrapper.optimizer.lr; set it to a learning rate')
    check_training(config)
    return config


def load_training_configs(path: str, options: dict[str, Any], against: Sequence[Sequence[str]]) -> dict[str, Config]:
    """Load a config, and once more for each of ``against``, a list of ``NAME=VALUE`` as in ``--cfg-options``.

    The names of the configs are the stem of the path for the first, the list for the others.
    """
    parser = ArgumentParser()
    parser.add_argument('--options', nargs='+', action=CfgOptions)
    named = {Path(path).stem: options}
    named.update((', '.join(each), {**options, **parser.parse_args(['--options', *each]).options}) for each in against)
    return {name: load_training_config(path, each) for name, each in named.items()}


class LossRecorder(Hook):  # type: ignore[misc]
    """Record the training loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []  # finite values only

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Record the loss of a step, or call :meth:`on_divergence` if it is NaN or infinite."""
        loss = outputs['loss'].item()
        if math.isfinite(loss):
            self.losses.append(loss)
        else:
            self.on_divergence(runner, loss)

    def on_divergence(self, runner: Any, loss: float) -> None:
        """End the training after this step."""
        runner.train_loop.stop_training = True


def base_rate(runner: Any) -> float:
    """Return the current learning rate, before multipliers of single parameters."""
    rates = runner.optim_wrapper.get_lr()
    return float(rates.get('base_lr', rates['lr'])[0])


def short_run(config: Config, hook: Hook, steps: int, work_dir: Path, schedule: list[dict[str, Any]]) -> Any:
    """Train for ``steps`` iterations with ``hook``, without validation and without checkpoints.

    ``schedule`` replaces the ``param_scheduler`` of the config; with an empty list the learning rate is constant.
    Returns the model. ``config`` does not change. mmengine writes its log to ``work_dir``.
    """
    config = copy.deepcopy(config)
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader', 'test_evaluator'):
        config[key] = None
    config.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': steps}
    config.param_scheduler = schedule
    config.auto_scale_lr = None
    removed = ('visualization', 'guard')  # the guard would stop a range test, which diverges on purpose
    hooks = {name: hook for name, hook in (config.get('default_hooks') or {}).items() if name not in removed}
    logger = {'type': 'LoggerHook', 'interval': max(steps // 10, 1)}
    config.default_hooks = {**hooks, 'checkpoint': None, 'logger': logger}
    config.log_processor = {'by_epoch': False}
    config.resume, config.work_dir = False, str(work_dir)
    config.experiment_name = f'{work_dir.name}_{time.time_ns()}'  # mmengine caches loggers by this name
    runner = Runner.from_cfg(config)
    runner.register_hook(hook)
    return runner.train()


def test_runner(config: Config, work_dir: Path) -> Runner:
    """Return a runner for tests of the model of ``config``, which does not change."""
    config = copy.deepcopy(config)
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'val_cfg',
                'val_dataloader', 'val_evaluator', 'load_from', 'custom_hooks', 'visualizer'):
        config[key] = None
    config.default_hooks = {'checkpoint': None, 'logger': None}
    config.resume, config.work_dir = False, str(work_dir)
    config.experiment_name = f'{work_dir.name}_{time.time_ns()}'
    return Runner.from_cfg(config)

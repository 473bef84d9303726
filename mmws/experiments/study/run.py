"""One run of a study, in the current process."""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Collection
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmws.errors import WSError, near_matches
from mmws.experiments.short_run import LossRecorder
from mmws.experiments.study.plan import Record, Run
from mmws.experiments.study.schema import Task
from mmws.experiments.study.start import StartHook, pretraining_run, take_subset_, write_starts

__all__ = ['config_of', 'prepare', 'train']

CURVE_POINTS = 40


class DivergedError(Exception):
    """The loss is NaN or infinite."""


class _StudyRecorder(LossRecorder):
    """Record the losses and the validations, by the name of the metric in the evaluator."""

    def __init__(self, metric: str, points: Collection[int] = ()) -> None:
        super().__init__()
        self.metric, self.points, self._step = metric, points, 0
        self.validations: list[tuple[int, float]] = []

    def before_train(self, runner: Runner) -> None:
        """Validate before the first step, if 0 is a point."""
        if 0 in self.points:
            runner.val_loop.run()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Record the loss of a step, and validate at the points."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        self._step = batch_idx + 1
        if self._step in self.points:
            runner.val_loop.run()

    def on_divergence(self, runner: Runner, loss: float) -> None:
        """End the training without another validation."""
        raise DivergedError(f'the loss is {loss} at step {len(self.losses) + 1}')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Record the metric; mmdet returns no metrics if it detected nothing."""
        if metrics and self.metric not in metrics:
            raise WSError(f'the evaluator has no metric {self.metric!r}: {near_matches(self.metric, metrics)}')
        self.validations.append((self._step, round(float(metrics[self.metric]), 5) if metrics else 0.0))

    def curve(self) -> list[tuple[int, float]]:
        """Return at most :data:`CURVE_POINTS` points: the last step and the mean loss of equal intervals."""
        length = max(1, math.ceil(len(self.losses) / CURVE_POINTS))
        intervals = [self.losses[start:start + length] for start in range(0, len(self.losses), length)]
        return [(min((i + 1) * length, len(self.losses)), round(sum(interval) / len(interval), 4))
                for i, interval in enumerate(intervals)]


def train(run: Run, task: Task) -> Record:
    """Train, and return the record of the run; its status is ``diverged`` if the loss is NaN or infinite."""
    points = [round(run.steps * point) for point in run.points]
    recorder, status, message = _StudyRecorder(task.metric, points), 'finished', ''
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner.from_cfg(config_of(run, folder))
        for hook in ([StartHook(run)] if run.start else []) + [recorder]:
            runner.register_hook(hook)
        try:
            runner.train()
        except DivergedError as error:
            status, message = 'diverged', f'{error}'
    del runner
    gc.collect()
    return {'name': run.name, 'status': status, 'message': message,
            'metric': recorder.validations[-1][1] if status == 'finished' else None,
            'seconds': round(time.perf_counter() - started, 1), 'settings': run.settings(),
            'validation': recorder.validations, 'loss': recorder.curve()}


def prepare(run: Run) -> None:
    """Write the weights that a run starts from, unless they exist."""
    with tempfile.TemporaryDirectory() as folder:
        write_starts(run, config_of(pretraining_run(run), folder))


def config_of(run: Run, folder: str) -> Config:
    """Return the config of the task with the settings of the run; the other values are the same for all runs."""
    config = Config.fromfile(run.config)
    config.model.ws = {**config.model.get('ws', {}), **run.ws}
    config.optim_wrapper.optimizer.lr = run.rate
    config.param_scheduler = _schedule(run)
    config.train_dataloader.batch_size = run.batch_size
    config.train_dataloader.sampler.seed = run.seed  # all methods see the images in the same order
    config.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': run.steps,
                        'val_interval': math.ceil(run.steps / run.validations)}
    config.randomness = {'seed': run.seed}
    config.default_hooks = {'checkpoint': None, 'logger': None, 'timer': None}
    config.visualizer = None  # a process would otherwise keep one visualizer for each run
    config.work_dir, config.experiment_name = folder, run.name
    take_subset_(config, run.subset)
    return config


def _schedule(run: Run) -> list[dict[str, Any]]:
    if run.schedule == 'one-cycle':
        return [{'type': 'OneCycleLR', 'by_epoch': False, 'eta_max': run.rate, 'total_steps': run.steps}]
    warm_up = max(1, round(run.warm_up / run.batch_size))
    return [{'type': 'LinearLR', 'by_epoch': False, 'start_factor': 0.01, 'end': warm_up},
            {'type': 'MultiStepLR', 'by_epoch': False, 'gamma': 0.1,
             'milestones': [int(run.steps * share) for share in (0.7, 0.9)]}]

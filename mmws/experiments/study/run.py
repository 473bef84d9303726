"""One run of a study, in the process that calls it."""

from __future__ import annotations

import gc
import io
import logging
import math
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmws.errors import WSError, near_matches
from mmws.experiments.study.plan import Record, Run
from mmws.experiments.study.study import Task

__all__ = ['prepare_process', 'train']

LOSSES = 40  # points of the training curve


class DivergedError(Exception):
    """The loss is no number any more."""


class Recorder(Hook):  # type: ignore[misc]
    """Keeps the losses and the validations of a training, and ends it where the loss is no number.

    Args:
        metric: what the evaluator calls the result.
    """

    priority = 'VERY_LOW'

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.losses: list[float] = []
        self.validations: list[tuple[int, float]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict[str, Any] | None = None) -> None:
        """Keep the loss of the step."""
        loss = float((outputs or {})['loss'])
        if not math.isfinite(loss):
            raise DivergedError(f'the loss is {loss} at step {len(self.losses) + 1}')
        self.losses.append(loss)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the metric; mmdet leaves all of them out where nothing at all was detected."""
        if metrics and self.metric not in metrics:
            raise WSError(f'the evaluator knows no metric {self.metric!r}: {near_matches(self.metric, metrics)}')
        self.validations.append((runner.iter, round(float(metrics[self.metric]), 5) if metrics else 0.0))

    def curve(self) -> list[tuple[int, float]]:
        """Return the last step of, and the mean loss over, each of at most :data:`LOSSES` stretches."""
        length = max(1, math.ceil(len(self.losses) / LOSSES))
        stretches = [self.losses[start:start + length] for start in range(0, len(self.losses), length)]
        return [(min((i + 1) * length, len(self.losses)), round(sum(stretch) / len(stretch), 4))
                for i, stretch in enumerate(stretches)]


def prepare_process() -> None:
    """Make this process one of several: one thread, and nothing but errors on the terminal."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    sys.stdout = io.StringIO()  # pycocotools prints


def train(run: Run, task: Task) -> Record:
    """Train, and return what came of it; whatever the toolkit raises, other than for a loss that is no number, passes.

    Args:
        run: what to train; its rate is known.
        task: of the run.
    """
    recorder, status, message = Recorder(task.metric), 'finished', ''
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner.from_cfg(config_of(run, folder))
        runner.register_hook(recorder)
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


def config_of(run: Run, folder: str) -> Config:
    """Return the task's config with what the run sets; what it leaves alone is the same for all runs of the task."""
    config = Config.fromfile(run.config)
    config.model.ws = {**config.model.get('ws', {}), **run.ws}
    config.optim_wrapper.optimizer.lr = run.rate
    config.param_scheduler = _schedule(run)
    config.train_dataloader.batch_size = run.batch_size
    config.train_dataloader.sampler.seed = run.seed  # the same images in the same order for all methods
    config.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': run.steps,
                        'val_interval': math.ceil(run.steps / run.validations)}
    config.randomness = {'seed': run.seed}
    config.default_hooks = {'checkpoint': None, 'logger': None, 'timer': None}
    config.visualizer = None  # one of its own for each run in the process
    config.work_dir, config.experiment_name = folder, run.name
    return config


def _schedule(run: Run) -> list[dict[str, Any]]:
    if run.schedule == 'one-cycle':
        return [{'type': 'OneCycleLR', 'by_epoch': False, 'eta_max': run.rate, 'total_steps': run.steps}]
    warm_up = max(1, round(run.warm_up / run.batch_size))
    return [{'type': 'LinearLR', 'by_epoch': False, 'start_factor': 0.01, 'end': warm_up},
            {'type': 'MultiStepLR', 'by_epoch': False, 'gamma': 0.1,
             'milestones': [int(run.steps * share) for share in (0.7, 0.9)]}]

"""Distillation without labels: a converted network learns to give the outputs of the BatchNorm network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmws.cli.transplant_data import Forward, preprocess
from mmws.errors import WSError
from mmws.openmmlab.guard_hook import newest_intact
from mmws.transplant.outputs import float_tensors

__all__ = ['Distillation', 'check_batch_size', 'distill']

RATE = 1e-3
WARM_UP = 0.1  # of the steps


class Distillation(BaseModel):  # type: ignore[misc]
    r"""A model that trains ``student`` to give the features and the outputs of ``teacher``, without labels.

    .. math:: L = \sum_k \frac{\lVert s_k - t_k \rVert^2}{\lVert t_k - \mathrm{mean}(t_k) \rVert^2}

    with the tensors :math:`s_k` that ``run`` returns for the student, and :math:`t_k` for the teacher. Both are in eval
    mode, because dropout and some heads give something else in train mode.

    Args:
        teacher: a model of a toolkit, or its backbone.
        student: the same, converted.
        run: gives both the same regions.
        data_preprocessor: of the model.

    Raises:
        WSError: at a step, if the outputs of the two differ in number or shape.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, run: Forward, data_preprocessor: nn.Module) -> None:
        super().__init__(data_preprocessor)
        self.student, self.run = student, run
        # Not a submodule: it is not in the checkpoints, and stays in eval mode.
        object.__setattr__(self, 'teacher', teacher.eval().requires_grad_(False))

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Return the losses; mmengine calls it with ``mode='loss'``."""
        teacher: Any = self.teacher
        teacher.to(inputs.device)
        data = {'inputs': inputs, 'data_samples': data_samples}
        self.run.start()
        with torch.no_grad():
            expected = float_tensors(self.run(teacher, data))
        found = float_tensors(self.run(self.student, data))
        _check_outputs([tuple(one.shape) for one in found], [tuple(one.shape) for one in expected])
        return {f'loss_{index}': (one - other).square().sum() / (other - other.mean()).square().sum().clamp_min(1e-12)
                for index, (one, other) in enumerate(zip(found, expected))}

    def train(self, mode: bool = True) -> Distillation:
        """Set the mode of all but the student, which stays in eval mode; the runner calls this."""
        super().train(mode)
        self.student.eval()
        return self

    def init_weights(self) -> None:
        """Keep the weights: the runner calls this before the first step."""

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        """Do one step; the preprocessor runs as in a test, because there are no annotations."""
        with optim_wrapper.optim_context(self):
            losses = self._run_forward(preprocess(self, data)[0], mode='loss')
        loss, log = self.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return log


def _check_outputs(found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> None:
    if not expected:
        raise WSError('--distill: the BatchNorm network gives no outputs to compare; leave out --distill')
    if len(found) != len(expected):
        raise WSError(f'--distill: expected {len(expected)} outputs of the converted network, as the BatchNorm network '
                      f'gives, got {len(found)}; leave out --distill')
    for index, (one, other) in enumerate(zip(found, expected)):
        if one != other:
            raise WSError(f'--distill: expected shape {other} for output {index} of the converted network, as the '
                          f'BatchNorm network gives, got {one}; leave out --distill')


def check_batch_size(config: Config) -> None:
    """Refuse a config that does not say how many images a step of the distillation has."""
    size = config.train_dataloader.get('batch_size')
    if not isinstance(size, int) or size < 1:
        raise WSError(f'{config.filename}: train_dataloader.batch_size: expected the number of images in a step of the '
                      f'distillation, got {size!r}; set it, as in --cfg-options train_dataloader.batch_size=4')


def distill(config: Config, model: Distillation, dataset: Dataset[Any], steps: int, work_dir: Path) -> None:
    """Train the student of ``model`` with Adam and the batch size of ``config``; resume after an interrupt.

    Args:
        config: of the student's training.
        model: with the networks.
        dataset: of images, as the pipeline of the test data gives them.
        steps: number of steps: a linear warm-up, then a cosine to 0.
        work_dir: folder for the log and for checkpoints, from which a second call resumes: from the newest that is
            not truncated.
    """
    newest = newest_intact(work_dir)
    loader, warm_up = config.train_dataloader, max(1, int(steps * WARM_UP))
    Runner(
        model, str(work_dir), experiment_name=work_dir.name, default_scope=config.default_scope,
        resume=newest is not None, load_from=None if newest is None else str(newest),
        train_dataloader=DataLoader(dataset, loader.batch_size, sampler=InfiniteSampler(dataset, seed=0),
                                    num_workers=loader.get('num_workers', 0), collate_fn=list),
        train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': steps},
        optim_wrapper={'optimizer': {'type': 'Adam', 'lr': RATE}},
        param_scheduler=[{'type': 'LinearLR', 'by_epoch': False, 'start_factor': 0.01, 'end': warm_up},
                         {'type': 'CosineAnnealingLR', 'by_epoch': False, 'begin': warm_up, 'end': steps}],
        default_hooks={
            'logger': {'type': 'LoggerHook', 'interval': max(1, steps // 20)},
            'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': max(1, steps // 5),
                           'max_keep_ckpts': 2}},  # mmengine deletes one before it writes the next
        log_processor={'by_epoch': False}, randomness={'seed': 0}).train()

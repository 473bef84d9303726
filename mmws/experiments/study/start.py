"""Weights that the runs of a study start from: those of a BatchNorm network, and what is made of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

from mmws.checkpoint import read_checkpoint, write_checkpoint
from mmws.cli.config import silence
from mmws.cli.transplant_checkpoint import build_networks, transplant_checkpoint
from mmws.experiments.study.plan import Run
from mmws.experiments.study.schema import SUBSETS, config_digest
from mmws.files import new_folder
from mmws.ops.torch_compat import BatchNorm
from mmws.transplant.pairs import copy_weights_, module_pairs

__all__ = ['StartHook', 'pretraining_run', 'start_folder', 'take_subset_', 'write_starts']

FOLDER = Path('work_dirs/study/starts')
BATCH_NORM = {'norm': 'keep', 'weight': 'plain'}
IMAGES = 64  # of a transplant
DISTILLED_BATCH = 4


class StartHook(Hook):  # type: ignore[misc]
    """Load the weights before the first step, and keep the statistics of BatchNorm if they are frozen."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def before_train(self, runner: Any) -> None:
        """Load the weights, all of them."""
        path = start_folder(self.run) / f'{self.run.start.replace("frozen", "checkpoint")}.pth'
        runner.model.load_state_dict(read_checkpoint(path).tensors, strict=True)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Put each BatchNorm into eval mode; the loop has set training mode."""
        for module in runner.model.modules() if self.run.start == 'frozen' else ():
            if isinstance(module, BatchNorm):
                module.eval()


def start_folder(run: Run) -> Path:
    """Return the folder of the weights for a run; its name is of everything that determines them."""
    content = json.dumps([run.seed, run.config, config_digest(run.config), vars(run.pretraining)],
                         sort_keys=True, default=str)
    return FOLDER / hashlib.sha256(content.encode()).hexdigest()[:12]


def take_subset_(config: Config, subset: str) -> None:
    """Limit the training images of ``config`` to a half."""
    dataset = config.train_dataloader.dataset
    if subset:
        with silence(), DefaultScope.overwrite_default_scope(config.default_scope):
            dataset.indices = list(range(SUBSETS[subset], len(DATASETS.build(dataset)), 2))


def write_starts(run: Run, config: Config) -> None:
    """Train the BatchNorm network for the start of ``run``, and write all starts made of it, unless they exist.

    Args:
        run: with a start.
        config: of that run.
    """
    target = start_folder(run)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as folder:
        runner = Runner.from_cfg(config)
        runner.train()
        write_checkpoint(folder / 'checkpoint.pth', runner.model.state_dict(), {})
        config.model.ws = {name: value for name, value in config.model.ws.items() if name not in BATCH_NORM}
        config.train_dataloader.batch_size = DISTILLED_BATCH
        networks = build_networks(config, str(folder / 'checkpoint.pth'))
        copy_weights_(dict(module_pairs(networks.teacher, networks.student)))
        write_checkpoint(folder / 'names.pth', networks.student.state_dict(), {})
        steps = run.pretraining.distill if run.pretraining else 0
        for name, number in {'transplant': 0, **({'distill': steps} if steps else {})}.items():
            transplant_checkpoint(config, str(folder / 'checkpoint.pth'), folder / f'{name}.pth', None, IMAGES, number)


def pretraining_run(run: Run) -> Run:
    """Return the run that trains the BatchNorm network for the start of ``run``."""
    pretraining = run.pretraining
    assert pretraining is not None
    return replace(run, ws=BATCH_NORM, start='', pretraining=None, subset='even', images=pretraining.images,
                   batch_size=pretraining.batch_size, rate=pretraining.rate, warm_up=pretraining.images // 10,
                   schedule='step', validations=1, points=())



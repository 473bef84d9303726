"""Definition of a study, its short form, and checks before its first run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from inspect import signature
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmws.cli.config import load_config
from mmws.cli.toolkit_script import toolkit_script_path
from mmws.conversion.options import Options
from mmws.errors import WSError, near_matches
from mmws.experiments.short_run import check_training

__all__ = ['SCHEDULES', 'STARTS', 'SUBSETS', 'Part', 'Pretraining', 'Quick', 'Study', 'Task', 'check_task',
           'choose_tasks', 'config_digest', 'shorten']

SCHEDULES = ('step', 'one-cycle')
STARTS = {'names': 'weights of the BatchNorm network by name', 'transplant': 'tools/transplant.py',
          'distill': 'tools/transplant.py --distill', 'checkpoint': 'the BatchNorm network itself',
          'frozen': 'the same, with the statistics of the pretraining in all steps'}
SUBSETS = {'even': 0, 'odd': 1}
"""Halves of the training images, with the index of the first."""


@dataclass(frozen=True)
class Part:
    """All combinations of methods, batch sizes and schedules, each with all seeds.

    The schedule ``step`` has a warm-up, 1/10 of the rate after 7/10 of the steps, and 1/100 after 9/10. ``one-cycle``
    is torch's ``OneCycleLR`` with the rate as its maximum.
    """

    methods: tuple[str, ...]  # keys of Study.methods
    batch_sizes: tuple[int, ...] = (1,)
    schedules: tuple[str, ...] = ('step',)  # of SCHEDULES
    rates: tuple[float, ...] = ()  # candidates for the learning rate; if empty, choose_rate takes another part's rate
    widen: int = 0  # at most as many further candidates, each beyond the grid, while the best is at its edge


@dataclass(frozen=True)
class Pretraining:
    """Training of a BatchNorm network on the even images of a task, for each seed, before the runs."""

    images: int  # number of training images
    batch_size: int
    rate: float
    distill: int = 0  # number of steps of the distillation, for the start of that name


@dataclass(frozen=True)
class Task:
    """A network and its data."""

    name: str
    config: str  # path of an mmengine config whose model has the mmws. prefix
    metric: str  # name of the metric in the evaluator
    label: str  # name of the metric in the report
    out_of: float  # largest value of the metric, 1 or 100
    images: int  # number of training images in a run, equal for all batch sizes
    warm_up: int  # number of images during which the learning rate rises
    seconds: float  # expected time of a run, for the estimate of the remaining time
    parts: tuple[Part, ...]
    validations: int = 4  # in a run; the last one is after the last step
    points: tuple[float, ...] = ()  # further validations, as fractions of the steps; 0 is before the first step
    subset: str = ''  # of SUBSETS: the training images of the runs
    rates_of: str = ''  # name of another task; its searches choose the learning rates
    seeds: tuple[int, ...] = ()  # instead of Study.seeds
    pretraining: Pretraining | None = None  # for methods that do not start from scratch


@dataclass(frozen=True)
class Quick:
    """Short form of a study, for :func:`shorten`."""

    methods: tuple[str, ...]  # to keep
    seeds: tuple[int, ...]  # to keep
    images: float  # fraction of the training images


@dataclass(frozen=True)
class Study:
    """A comparison of methods."""

    tasks: tuple[Task, ...]  # in the order of the runs
    methods: Mapping[str, Mapping[str, Any]]  # options ws=dict(...) by name
    seeds: tuple[int, ...]  # of the reported runs
    rate_seed: int  # of the runs that choose the learning rates
    references: tuple[str, ...] = ()  # methods that the others are compared with, by seed
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # functions of mmws.data.digits to call first
    quick: Quick | None = None
    title: str = 'Normalization at small batch sizes'  # of the report
    starts: Mapping[str, str] = field(default_factory=dict)  # of STARTS, by method; the others start from scratch


def shorten(study: Study) -> Study:
    """Return the short form of a study, by its key ``quick``: it uses the middle learning rate and does no search."""
    quick = study.quick
    if quick is None:
        raise WSError('the study has no key `quick`; add one, for example '
                      'quick: {methods: [GN, BN], seeds: [1], images: 0.1}')

    def shorten_part(part: Part) -> Part:
        return replace(part, methods=tuple(name for name in part.methods if name in quick.methods),
                       rates=part.rates[len(part.rates) // 2:][:1])

    return replace(study, seeds=quick.seeds, tasks=tuple(
        replace(task, seeds=(), images=round(task.images * quick.images), warm_up=round(task.warm_up * quick.images),
                seconds=task.seconds * quick.images, validations=1, parts=tuple(map(shorten_part, task.parts)),
                pretraining=task.pretraining and replace(
                    task.pretraining, images=round(task.pretraining.images * quick.images),
                    distill=round(task.pretraining.distill * quick.images)))
        for task in study.tasks))


def choose_tasks(study: Study, names: Sequence[str]) -> Study:
    """Return the study with these tasks only, and with those that their learning rates are from.

    Raises:
        WSError: if the study has no task of such a name.
    """
    tasks = {task.name: task for task in study.tasks}
    for name in names:
        if name not in tasks:
            raise WSError(f'--tasks: unknown task {name!r}: {near_matches(name, tasks)}')
    chosen = {*names, *(tasks[name].rates_of for name in names)}
    return replace(study, tasks=tuple(task for task in study.tasks if task.name in chosen))


def check_task(study: Study, task: Task) -> None:
    """Raise WSError for a mistake that would make every run of a task fail: in its config, its data or its methods."""
    for name in sorted({name for part in task.parts for name in part.methods}):
        options = {key: value for key, value in study.methods[name].items() if key != 'pretrained'}
        Options.parse(options, also=['pretrained'])
    try:
        config = load_config(task.config, needs=['model'])
    except WSError as error:
        raise WSError(f'task {task.name}: {error}; paths are relative to the current folder') from None
    if not str(config.model.type).startswith('mmws.'):
        raise WSError(f'{task.config}: model.type is {config.model.type!r}; the study sets the norm through the mmws. '
                      f'prefix, so write mmws.{config.model.type}')
    toolkit_script_path(config, 'train.py')
    check_training(config, ('train_dataloader', 'val_dataloader'))


@lru_cache(maxsize=None)
def config_digest(path: str) -> str:
    """Return a hash of what a config, with all that it inherits, gives the runner."""
    config = Config.fromfile(path).to_dict()
    used = {name: config[name] for name in signature(Runner).parameters if name in config}
    used.get('default_hooks', {}).pop('guard', None)  # a study replaces the default hooks
    used.pop('auto_scale_lr', None)  # and chooses the rate
    content = json.dumps(used, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]

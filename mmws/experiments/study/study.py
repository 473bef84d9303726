"""What a study compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from mmengine.config import Config

from mmws.cli.check_config import check_classes, check_data
from mmws.cli.check_data import check_content
from mmws.cli.config import load_config
from mmws.cli.load_model import check_model
from mmws.cli.run_toolkit import toolkit_tool
from mmws.conversion.options import Options
from mmws.errors import WSError

__all__ = ['SCHEDULES', 'Part', 'Quick', 'Study', 'Task', 'check_task', 'config_digest', 'shorten']

SCHEDULES = ('step', 'one-cycle')


@dataclass(frozen=True)
class Part:
    """Methods times batch sizes times schedules, each with all the seeds.

    Args:
        methods: names.
        batch_sizes: images a step.
        schedules: of :data:`SCHEDULES`. ``step``: warm-up, a tenth of the rate from 7/10 of the steps on and a
            hundredth from 9/10; ``one-cycle``: torch's, with the rate as its maximum.
        rates: to choose the learning rate from, for each of the products; without, it is scaled in proportion from
            the search of another part at the next smaller batch size.
    """

    methods: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (1,)
    schedules: tuple[str, ...] = ('step',)
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Task:
    """A network and data to train it on.

    Args:
        name: for people.
        config: path of an mmengine config whose model has the ``mmws.`` prefix.
        metric: what its evaluator calls the result.
        label: what people call it.
        out_of: the best value there is, 1 or 100.
        images: seen in training, the same for all batch sizes.
        warm_up: images that go by while the rate rises to its value.
        seconds: of a run, for the estimate of the time left.
        parts: what is run.
        validations: how often the validation images are gone through, the last time after the last step.
    """

    name: str
    config: str
    metric: str
    label: str
    out_of: float
    images: int
    warm_up: int
    seconds: float
    parts: tuple[Part, ...]
    validations: int = 4


@dataclass(frozen=True)
class Quick:
    """What :func:`shorten` leaves of a study.

    Args:
        methods: those that are kept.
        seeds: those that are.
        images: the share of the images.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    images: float


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        tasks: in the order in which they are run.
        methods: the options ``ws=dict(...)`` of each, by name.
        seeds: of the runs that are reported.
        rate_seed: of the runs that the learning rates are chosen from.
        data: what of :mod:`mmws.data.digits` to make first, with its arguments.
        quick: what :func:`shorten` makes of it.
    """

    tasks: tuple[Task, ...]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    rate_seed: int
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quick: Quick | None = None


def shorten(study: Study) -> Study:
    """Return the study as its key ``quick`` says, at one rate, the middle one, without a search.

    Raises:
        WSError: if it has none.
    """
    quick = study.quick
    if quick is None:
        raise WSError('the study has no key `quick`, which says what to leave of it, as in '
                      '{methods: [GN, BN], seeds: [1], images: 0.1}')

    def shorter(part: Part) -> Part:
        return replace(part, methods=tuple(name for name in part.methods if name in quick.methods),
                       rates=part.rates[len(part.rates) // 2:][:1])

    return replace(study, seeds=quick.seeds, tasks=tuple(
        replace(task, images=round(task.images * quick.images), warm_up=round(task.warm_up * quick.images),
                seconds=task.seconds * quick.images, validations=1, parts=tuple(map(shorter, task.parts)))
        for task in study.tasks))


def check_task(study: Study, task: Task) -> None:
    """Look for what would make all runs of a task fail.

    Raises:
        WSError: if the config, its data, its toolkit or the prefix in it are missing, or a method has a wrong option.
    """
    for name in {name for part in task.parts for name in part.methods}:
        options = dict(study.methods[name])
        options.pop('pretrained', None)
        Options.parse(options, also=['pretrained'])
    try:
        config = load_config(task.config, needs=['model'])
    except WSError as error:
        raise WSError(f'task {task.name}: {error}; paths are from the current folder') from None
    if not str(config.model.type).startswith('mmws.'):
        raise WSError(f'{task.config}: model.type is {config.model.type!r}; the study sets the norm through the mmws. '
                      f'prefix, so write mmws.{config.model.type}')
    toolkit_tool(config, 'train.py')
    check_data(config, ('train_dataloader', 'val_dataloader'))
    check_classes(config, 'train_dataloader')
    check_content(config, ('train_dataloader', 'val_dataloader'))
    check_model(config)


@cache
def config_digest(path: str) -> str:
    """Return what tells whether a config, with all it inherits, is as it was."""
    config = Config.fromfile(path).to_dict()
    config.get('default_hooks', {}).pop('guard', None)  # of no effect on a study, which has hooks of its own
    content = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]

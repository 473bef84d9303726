"""The file that says what a study compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from mmengine.config import Config

from mmws.convert import Options
from mmws.errors import WSError, near_matches
from mmws.launch import toolkit_tool
from mmws.preflight import check_classes, check_data

__all__ = ['SCHEDULES', 'Part', 'Study', 'Task', 'check_task', 'config_digest', 'read_study', 'shorten']

SCHEDULES = ('step', 'one-cycle')
Made = TypeVar('Made')


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
    quick: Mapping[str, Any] = field(default_factory=dict)


def read_study(path: str | Path) -> Study:
    """Read a study's YAML file; its keys are the arguments of :class:`Study`, :class:`Task` and :class:`Part`.

    Raises:
        WSError: if the file cannot be read, or a key, a method or a schedule in it is unknown or missing.
    """
    path = Path(path)
    if not path.is_file():
        there = [other.name for other in path.parent.glob('*.yaml')]
        raise WSError(f'there is no study {path}; in {path.parent}: {near_matches(path.name, there)}')
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise WSError(f'{path} is no YAML: {" ".join(str(error).split())}') from None
    study = _make(Study, content, f'{path}')
    for name, options in study.methods.items():
        if not isinstance(options, dict):
            raise WSError(f'{path}: methods.{name}: expected ws options as in {{norm: GN}}, got {options!r}')
    tasks = tuple(_task(study, name, task, f'{path}: tasks.{name}') for name, task in content['tasks'].items())
    return replace(study, tasks=tasks)


def _task(study: Study, name: str, content: Any, where: str) -> Task:
    task = _make(Task, {'name': name, **content} if isinstance(content, dict) else content, where)
    parts = tuple(_make(Part, part, f'{where}.parts[{i}]') for i, part in enumerate(task.parts))
    for part in parts:
        for method in part.methods:
            if method not in study.methods:
                raise WSError(f'{where}: unknown method {method!r}: {near_matches(method, study.methods)}')
            if not any(method in other.methods and set(part.schedules) <= set(other.schedules) and other.rates
                       and min(other.batch_sizes) <= min(part.batch_sizes) for other in parts):
                raise WSError(f'{where}: no part has rates for {method} at {min(part.batch_sizes)} images a step or '
                              f'less, {" and ".join(part.schedules)}; its learning rate has to come from somewhere')
        for schedule in part.schedules:
            if schedule not in SCHEDULES:
                raise WSError(f'{where}: unknown schedule {schedule!r}: {near_matches(schedule, SCHEDULES)}')
    return replace(task, parts=parts)


def _make(kind: type[Made], content: Any, where: str) -> Made:
    """Make ``kind`` of a mapping, lists as tuples, after a look at its keys."""
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, dict):
        raise WSError(f'{where}: expected a mapping with the keys {", ".join(known)}, got {content!r}')
    for key in content:
        if key not in known:
            raise WSError(f'{where}: unknown key {key!r}: {near_matches(str(key), known)}')
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})
    except TypeError as error:
        raise WSError(f'{where}: {str(error).partition("() ")[2]}') from None


def shorten(study: Study) -> Study:
    """Return the study as its key ``quick`` says: ``methods`` and ``seeds`` kept, that share of ``images``, one rate.

    The rate is the middle one, and no search is made.
    """
    quick = study.quick

    def shorter(part: Part) -> Part:
        return replace(part, methods=tuple(name for name in part.methods if name in quick['methods']),
                       rates=part.rates[len(part.rates) // 2:][:1])

    return replace(study, seeds=tuple(quick['seeds']), tasks=tuple(
        replace(task, images=round(task.images * quick['images']), warm_up=round(task.warm_up * quick['images']),
                seconds=task.seconds * quick['images'], validations=1, parts=tuple(map(shorter, task.parts)))
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
    if not Path(task.config).is_file():
        raise WSError(f'task {task.name}: there is no config {task.config}; paths are from the current folder')
    config = Config.fromfile(task.config)
    if not str(config.model.type).startswith('mmws.'):
        raise WSError(f'{task.config}: model.type is {config.model.type!r}; the study sets the norm through the mmws. '
                      f'prefix, so write mmws.{config.model.type}')
    toolkit_tool(config, 'train.py')
    check_data(config, ('train_dataloader', 'val_dataloader'))
    check_classes(config, 'train_dataloader')


@cache
def config_digest(path: str) -> str:
    """Return what tells whether a config, with all it inherits, is as it was."""
    content = json.dumps(Config.fromfile(path).to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]

"""The file that says what a study compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from mmws.errors import WSError, near_matches
from mmws.experiments.study.study import SCHEDULES, Part, Quick, Study, Task

__all__ = ['read_study']

Made = TypeVar('Made')
WORDS = {str: 'text', int: 'a whole number', float: 'a number'}


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
    if not isinstance(content['tasks'], dict):
        raise WSError(f'{path}: tasks: expected a mapping of names to tasks, got {content["tasks"]!r}')
    for name, options in study.methods.items():
        if not isinstance(options, dict):
            raise WSError(f'{path}: methods.{name}: expected ws options as in {{norm: GN}}, got {options!r}')
    tasks = tuple(_task(study, name, task, f'{path}: tasks.{name}') for name, task in content['tasks'].items())
    return replace(study, tasks=tasks, quick=study.quick and _make(Quick, study.quick, f'{path}: quick'))


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
    hints = get_type_hints(kind)
    for key, value in content.items():
        _check_type(value, hints[key], f'{where}: {key}')
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})
    except TypeError as error:
        raise WSError(f'{where}: {str(error).partition("() ")[2]}') from None


def _check_type(value: Any, hint: Any, where: str) -> None:
    """Raise if a value is not of its type; what is made of mappings is looked at when it is made."""
    if get_origin(hint) is tuple and get_args(hint)[0] in WORDS:
        inner = get_args(hint)[0]
        if not isinstance(value, list) or not all(_is(one, inner) for one in value):
            raise WSError(f'{where}: expected a list, each {WORDS[inner]}, got {value!r}')
    elif hint in WORDS and not _is(value, hint):
        raise WSError(f'{where}: expected {WORDS[hint]}, got {value!r}')
    elif get_origin(hint) is Mapping and not isinstance(value, dict):
        raise WSError(f'{where}: expected a mapping, got {value!r}')


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)

"""Read the YAML file that defines a study."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mmws.errors import WSError, format_exception, near_matches
from mmws.experiments.study.schema import SCHEDULES, STARTS, SUBSETS, Part, Pretraining, Quick, Study, Task
from mmws.files import check_input

__all__ = ['read_study']

Made = TypeVar('Made')
TYPES: dict[str, tuple[tuple[type, ...], str]] = {  # by annotation
    'str': ((str,), 'text'), 'int': ((int,), 'an integer'), 'float': ((int, float), 'a number')}


def read_study(path: str | Path) -> Study:
    """Read a study; the keys of the file are the arguments of :class:`Study`, :class:`Task` and :class:`Part`.

    Raises:
        WSError: if the file cannot be read, or a key, a method or a schedule in it is unknown or missing.
    """
    path = check_input('study', path)
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise WSError(f'{path} is not valid YAML: {format_exception(error)}') from None
    study = _make(Study, content, f'{path}')
    if not isinstance(content['tasks'], dict):
        raise WSError(f'{path}: tasks: expected a mapping of names to tasks, got {content["tasks"]!r}')
    for name, options in study.methods.items():
        if not isinstance(options, dict):
            raise WSError(f'{path}: methods.{name}: expected ws options as in {{norm: GN}}, got {options!r}')
    for name, start in study.starts.items():
        for kind, value, known in (('method', name, study.methods), ('start', start, STARTS)):
            if value not in known:
                raise WSError(f'{path}: starts: unknown {kind} {value!r}: {near_matches(str(value), known)}')
        if study.methods[name] and start in ('names', 'transplant', 'distill'):
            raise WSError(f'{path}: methods.{name}: expected {{}}, because the start {start!r} has the options of the '
                          f'config; got {study.methods[name]!r}')
    tasks = tuple(_task(study, name, task, f'{path}: tasks.{name}') for name, task in content['tasks'].items())
    for task in tasks:
        if task.rates_of and task.rates_of not in [other.name for other in tasks if not other.rates_of]:
            raise WSError(f'{path}: tasks.{task.name}: rates_of: expected another task that has rates of its own, got '
                          f'{task.rates_of!r}')
    return replace(study, tasks=tasks, quick=study.quick and _make(Quick, study.quick, f'{path}: quick'))


def _task(study: Study, name: str, content: Any, where: str) -> Task:
    task = _make(Task, {'name': name, **content} if isinstance(content, dict) else content, where)
    parts = tuple(_make(Part, part, f'{where}.parts[{i}]') for i, part in enumerate(task.parts))
    for part in parts:
        for kind, names, known in (('method', part.methods, study.methods), ('schedule', part.schedules, SCHEDULES)):
            for unknown in (name for name in names if name not in known):
                raise WSError(f'{where}: unknown {kind} {unknown!r}: {near_matches(unknown, known)}')
        for method in part.methods if not task.rates_of else ():
            if not any(method in other.methods and set(part.schedules) <= set(other.schedules) and other.rates
                       and min(other.batch_sizes) <= min(part.batch_sizes) for other in parts):
                raise WSError(f'{where}: no part has rates for {method}, {" and ".join(part.schedules)} schedule, '
                              f'batch size {min(part.batch_sizes)} or less; add candidates for the learning rate')
    if task.subset and task.subset not in SUBSETS:
        raise WSError(f'{where}: unknown subset {task.subset!r}: {near_matches(task.subset, SUBSETS)}')
    if not task.pretraining and any(method in study.starts for part in parts for method in part.methods):
        raise WSError(f'{where}: a method has a start, but the task has no pretraining; add '
                      'pretraining: {images: 4000, batch_size: 16, rate: 0.05}')
    return replace(task, parts=parts, pretraining=task.pretraining and _make(
        Pretraining, task.pretraining, f'{where}.pretraining'))


def _make(kind: type[Made], content: Any, where: str) -> Made:
    """Make ``kind`` of a mapping, after a check of its keys and values; lists become tuples."""
    known = {each.name: str(each.type) for each in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, dict):
        raise WSError(f'{where}: expected a mapping with the keys {", ".join(known)}, got {content!r}')
    for key, value in content.items():
        if key not in known:
            raise WSError(f'{where}: unknown key {key!r}: {near_matches(str(key), known)}')
        _check_type(value, known[key], f'{where}: {key}')
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})
    except TypeError as error:
        raise WSError(f'{where}: {str(error).partition("() ")[2]}') from None


def _check_type(value: Any, annotation: str, where: str) -> None:
    """Raise if a value has the wrong type; :func:`_make` checks the mappings inside of it later.

    The annotation stays text: Python 3.8 cannot evaluate ``tuple[int, ...]``.
    """
    listed = re.fullmatch(r'tuple\[(\w+), \.\.\.\]', annotation)
    kinds, expected = TYPES.get(listed[1] if listed else annotation, ((), 'a mapping'))
    if not kinds:
        right = isinstance(value, dict) or not annotation.startswith('Mapping')
    elif listed:
        right = isinstance(value, list) and all(_is(each, kinds) for each in value)
        expected = f'a list, each {expected}'
    else:
        right = _is(value, kinds)
    if not right:
        raise WSError(f'{where}: expected {expected}, got {value!r}')


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)

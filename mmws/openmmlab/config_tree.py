"""Traversal of nested configs: iterate over their dicts, or copy a config with changed dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ['dicts_in', 'map_dicts']


def dicts_in(config: Any, path: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each dict in a config with its path, outer dicts first.

    Example:
        >>> [path for path, _ in dicts_in({'model': {'neck': [{'type': 'FPN'}]}})]
        ['', 'model', 'model.neck[0]']
    """
    if isinstance(config, dict):
        yield path, config
    for inner_path, part in list(_children(config, path)):  # a list: the caller may write to the dict
        yield from dicts_in(part, inner_path)


def map_dicts(change: Callable[[dict[str, Any], str], Any], config: Any, path: str = '') -> Any:
    """Copy a config and replace each dict by ``change(dict, path)``, inner dicts first. ``config`` does not change.

    Example:
        >>> map_dicts(lambda part, path: {**part, 'at': path}, {'neck': {}})
        {'neck': {'at': 'neck'}, 'at': ''}
    """
    mapped = [map_dicts(change, part, inner_path) for inner_path, part in _children(config, path)]
    if isinstance(config, dict):
        return change(type(config)(zip(config, mapped)), path)
    return type(config)(mapped) if isinstance(config, (list, tuple)) else config


def _children(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(config, dict):
        yield from ((f'{path}.{key}' if path else str(key), part) for key, part in config.items())
    elif isinstance(config, (list, tuple)):
        yield from ((f'{path}[{index}]', part) for index, part in enumerate(config))

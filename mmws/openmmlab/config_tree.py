"""Walk through the dicts of a config: read them, or map each to another."""

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
        for key, part in list(config.items()):
            yield from dicts_in(part, f'{path}.{key}' if path else str(key))
    elif isinstance(config, (list, tuple)):
        for index, part in enumerate(config):
            yield from dicts_in(part, f'{path}[{index}]')


def map_dicts(change: Callable[[dict[str, Any], str], Any], config: Any, path: str = '') -> Any:
    """Copy a config and replace each dict by ``change(dict, path)``, inner dicts first.

    Args:
        change: gets a copy whose inner dicts were replaced already.
        config: stays as it is.
        path: of ``config``.

    Example:
        >>> map_dicts(lambda part, path: part | {'at': path}, {'neck': {}})
        {'neck': {'at': 'neck'}, 'at': ''}
    """
    if isinstance(config, (list, tuple)):
        return type(config)(map_dicts(change, part, f'{path}[{index}]') for index, part in enumerate(config))
    if not isinstance(config, dict):
        return config
    inner = {key: map_dicts(change, part, f'{path}.{key}' if path else str(key)) for key, part in config.items()}
    return change(type(config)(inner), path)

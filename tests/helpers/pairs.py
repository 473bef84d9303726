"""Walk through several collections at once."""

from __future__ import annotations

from collections.abc import Iterable


def pairs(*collections: Iterable) -> list[tuple]:
    """Do as ``zip(strict=True)``, which needs Python 3.10.

    Example:
        >>> pairs('ab', [1, 2])
        [('a', 1), ('b', 2)]
        >>> pairs('ab', [1])
        Traceback (most recent call last):
        ValueError: expected collections of one length, got the lengths [2, 1]
    """
    columns = [list(collection) for collection in collections]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f'expected collections of one length, got the lengths {lengths}')
    return list(zip(*columns))

"""The one exception of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ['WSError', 'near_matches']


class WSError(ValueError):
    """A mistake in a config, an option or a file that the user can correct; its text says where and how."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return what of ``known`` looks like ``name``, as the end of an error message; all of it where it is short.

    Example:
        >>> near_matches('nrom', ['norm', 'eps'])
        "did you mean 'norm'?"
        >>> near_matches('colour', ['norm', 'eps'])
        "expected one of 'eps', 'norm'"
    """
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3)
    if close:
        return f'did you mean {" or ".join(repr(by_lower[lower]) for lower in close)}?'
    listed = sorted(by_lower.values())
    rest = f' and {len(listed) - 12} more' if len(listed) > 12 else ''
    return f'expected one of {", ".join(map(repr, listed[:12]))}{rest}' if listed else 'there is none'

"""The exception of this package, and exceptions as one line of text."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Mapping
from types import TracebackType

__all__ = ['FOREIGN_ERRORS', 'WSError', 'format_exception', 'near_matches', 'one_line_errors',
           'shortened', 'without_prefix']

FOREIGN_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError,
                  NameError, ImportError)
"""Exceptions that foreign code raises on unexpected input."""


class WSError(ValueError):
    """A mistake in a config, an option or a file, or a failed check of a result: NaN, a full disk, another ONNX output.

    The message says where it is and, if known, how to correct it.

    Example:
        >>> import mmws
        >>> try:
        ...     mmws.Options(norm='GroupNorm')
        ... except WSError as error:
        ...     print(error)
        ws option norm: expected 'GN', 'LN', 'IN', 'SN', 'BCN', 'EstBN' or 'keep', got 'GroupNorm'
    """


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known names that are similar to ``name``, or the first 12 known names.

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
    more = f' and {len(listed) - 12} more' if len(listed) > 12 else ''
    return f'expected one of {", ".join(map(repr, listed[:12]))}{more}' if listed else 'none available'


def format_exception(error: BaseException) -> str:
    """Format any exception as one line. For one from a worker of a data loader, return the cause only.

    Example:
        >>> format_exception(KeyError('no\\nnorm'))
        'KeyError: no norm'
    """
    error = _original(error)
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if 'Original Traceback' in text:
        return without_prefix(text.splitlines()[-1], 'mmws.errors.WSError: ')
    kind = [] if isinstance(error, WSError) else [type(error).__name__]
    return ': '.join([*kind, *([f'{" ".join(text.split()):.1000}'] if text else [])])


def _original(error: BaseException) -> BaseException:
    """Return the exception that mmengine < 0.8 raised again with a longer message, or failed to."""
    while error.__context__ is not None and 'mmengine/registry/build_functions.py' in (
            [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)] or [''])[-1]:
        error = error.__context__
    return error


def shortened(value: object) -> str:
    """Return the start of a value's repr for an error message; for a mapping, its first keys.

    Example:
        >>> shortened({'conv.weight': [0.0] * 1000, 'conv.bias': [0.0]})
        "dict with the keys 'conv.weight', 'conv.bias'"
    """
    if not isinstance(value, Mapping):
        return f'{value!r:.80}'
    more = f' and {len(value) - 3} more' if len(value) > 3 else ''
    return f'{type(value).__name__} with the keys {", ".join(map(repr, [*value][:3]))}{more}'


def without_prefix(text: str, prefix: str) -> str:
    """Return ``text`` without ``prefix``, if it starts with it: ``str.removeprefix`` needs Python 3.9.

    Example:
        >>> without_prefix('mmws.MaskRCNN', 'mmws.'), without_prefix('MaskRCNN', 'mmws.')
        ('MaskRCNN', 'MaskRCNN')
    """
    return text[len(prefix):] if text.startswith(prefix) else text


class one_line_errors:  # noqa: N801
    """Context of a command-line tool: a mistake of the user ends the tool with one line on stderr and exit code 1.

    Such a mistake is a :class:`WSError`, an ``OSError``, or any exception while the toolkit builds the objects of the
    config or reads data. Other exceptions keep their traceback.

    Example:
        >>> with one_line_errors():
        ...     raise WSError('config x.py not found')
        Traceback (most recent call last):
        SystemExit: error: config x.py not found
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, (WSError, OSError)) or (isinstance(error, Exception) and _raised_in_setup(at)):
            raise SystemExit(f'error: {format_exception(error)}') from None


def _raised_in_setup(at: TracebackType | None) -> bool:
    """Return whether mmengine was building a run or torch was reading data, as opposed to a step of training.

    The toolkit's script builds the run and trains in one call, so only the traceback tells the two apart.
    """
    calls = ' '.join(f'{frame.f_code.co_filename}:{frame.f_code.co_name}' for frame, _ in traceback.walk_tb(at))
    in_runner = re.search(r'mmengine/(runner/runner|registry/build_functions)\.py', calls)
    in_loop = re.search(r'mmengine/runner/loops\.py:run\b', calls)
    return bool(in_runner and not in_loop) or '/torch/utils/data/' in calls

"""The one exception of this package, and how a command line tells of it."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from types import TracebackType

__all__ = ['FOREIGN_ERRORS', 'WSError', 'format_exception', 'near_matches', 'one_line_errors']


FOREIGN_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError,
                  NameError, ImportError)
"""Exceptions of other people's code on input that it does not expect. Anything else is a mistake of ours."""


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


def format_exception(error: BaseException) -> str:
    """Return an exception of others in one line; of one that a data loader's worker hands on, what it is about.

    Example:
        >>> format_exception(KeyError('no\\nnorm'))
        'KeyError: no norm'
    """
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if 'Original Traceback' in text:
        return text.splitlines()[-1].removeprefix('mmws.errors.WSError: ')
    kind = '' if isinstance(error, WSError) else f'{type(error).__name__}: '
    return f'{kind}{" ".join(text.split()):.1000}'.removesuffix(': ')


class one_line_errors:  # noqa: N801
    """A block of a command-line tool: a mistake of the user ends it with one line on stderr, and exit code 1.

    A mistake is a :class:`WSError`, a file that cannot be read or written, and whatever is raised while the toolkit
    builds what the config asks for or reads the data. Anything else keeps its traceback.

    Example:
        >>> with one_line_errors():
        ...     raise WSError('there is no config x.py')
        Traceback (most recent call last):
        SystemExit: error: there is no config x.py
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        ours = isinstance(error, (WSError, OSError))
        if error is not None and (ours or (isinstance(error, Exception) and _is_of_the_setup(at))):
            raise SystemExit(f'error: {format_exception(error)}') from None


def _is_of_the_setup(at: TracebackType | None) -> bool:
    """Whether an exception comes from building for a run, or from its data, rather than from its steps."""
    calls = [(frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in traceback.walk_tb(at)]
    builds = any(file.endswith(('mmengine/runner/runner.py', 'mmengine/registry/build_functions.py'))
                 for file, _ in calls)
    steps = any(file.endswith('mmengine/runner/loops.py') and name == 'run' for file, name in calls)
    return (builds and not steps) or any('/torch/utils/data/' in file for file, _ in calls)

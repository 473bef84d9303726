"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ['table']


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table.

    Example:
        >>> print(table(['', 'AP'], [['GN', '0.3']]))
        |  | AP |
        | --- | --- |
        | GN | 0.3 |
    """
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))

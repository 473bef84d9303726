"""The table of ``tools/sweep.py``: a CSV file with a row per config, and a page with the totals and the reasons."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mmws.errors import WSError
from mmws.experiments.markdown import table
from mmws.experiments.sweep import Row
from mmws.files import write_text

__all__ = ['append_rows', 'read_rows', 'render', 'totals', 'write_table']

COLUMNS = [column.name for column in fields(Row)]
NUMBERS = [column.name for column in fields(Row) if column.type in (int, 'int')]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a table, none if it does not exist.

    Raises:
        WSError: if the file is not such a table.
    """
    if not path.is_file():
        return []
    reader = csv.DictReader(path.read_text(errors='replace').splitlines())
    if reader.fieldnames != COLUMNS:
        raise WSError(f'{path} is not a table of this tool: expected the columns {", ".join(COLUMNS)}; choose another '
                      'name')
    try:
        return [_row(cells) for cells in reader]
    except (ValueError, TypeError, AttributeError) as error:  # a cell is no number or is missing
        raise WSError(f'{path} is damaged at line {reader.line_num}: {error}; delete it or choose another '
                      'name') from None


def _row(cells: dict[str, Any]) -> Row:
    return Row(**{**cells, **{name: int(cells[name]) for name in NUMBERS}, 'skipped': _counts(cells['skipped'])})


def _counts(text: str) -> dict[str, int]:
    parts = (part.partition(' ') for part in text.split('; ') if part)
    return {reason: int(count) for count, _, reason in parts}


def _cells(row: Row) -> dict[str, Any]:
    why = row.why.replace(f'{Path.cwd()}/', '')
    return {**asdict(row), 'skipped': '; '.join(f'{count} {why}' for why, count in row.skipped.items()), 'why': why}


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows to ``path``, and :func:`render` to the same path with the ending ``.md``."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(map(_cells, rows))
    write_text(path, file.getvalue())
    write_text(path.with_suffix('.md'), render(path.name, read_rows(path)))  # paths as in the table


def append_rows(partial: Path, rows: Iterable[Row]) -> list[Row]:
    """Append each row to a partial table as soon as it is there, and return all of them."""
    done = []
    with partial.open('a', buffering=1) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if not file.tell():
            writer.writeheader()
        for row in rows:
            writer.writerow(_cells(row))
            done.append(row)
    return done


def totals(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table with a line per toolkit or library."""
    lines = []
    packages = sorted({_package(row) for row in rows})
    for name in [*packages, 'all'] if len(packages) > 1 else packages:
        part = [row for row in rows if name in ('all', _package(row))]
        numbers = (len(part), sum(row.verdict in ('pass', 'fail') for row in part),
                   sum(row.verdict == 'pass' for row in part), sum(row.backward for row in part),
                   sum(row.convs for row in part),
                   sum(row.converted for row in part), sum(row.confirmed for row in part),
                   sum(row.unrun for row in part))
        lines.append([name, *(f'{number:,}' for number in numbers)])
    return ['', 'configs', 'built without mmws', 'passed', 'with a backward pass', 'convolutions', 'standardized',
            'confirmed by autograd', 'not run'], lines


def render(name: str, rows: Sequence[Row]) -> str:
    """Return the page: the totals, and for each toolkit or library the reasons of what is not standardized."""
    parts = ['# Conversion of all stock models',
             f'Written by `tools/sweep.py` with [{name}]({name}), a row per config. Each model is built with its own '
             'type and converted. The placement is compared with a real run of the converted model on the CPU. '
             'A standardized convolution is confirmed by autograd if only norms use its output in the graph of a loss.',
             table(*totals(rows))]
    for package in sorted({_package(row) for row in rows}):
        part = [row for row in rows if _package(row) == package]
        parts.append(f'## {package}')
        plain: Counter[str] = Counter()
        for row in part:
            plain.update(row.skipped)
        if plain:
            parts.append(table(['convolutions that stay plain', 'reason'], (
                [f'{count:,}', reason] for reason, count in plain.most_common(12))))
        others = Counter((row.verdict, row.why) for row in part if row.verdict != 'pass')
        if others:
            parts.append(table(['configs', 'result', 'reason'], (
                [f'{count:,}', verdict, why.replace('|', '\\|')] for (verdict, why), count in others.most_common())))
    return '\n\n'.join(parts) + '\n'


def _package(row: Row) -> str:
    return row.config.partition('::')[0]

"""Run the tutorial. ``python -m tests.helpers.notebook`` runs it in full, and keeps the outputs in the notebook."""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.helpers.commands import REPOSITORY

TUTORIAL = REPOSITORY / 'docs' / 'tutorial.ipynb'


def read() -> Any:
    return nbformat.read(TUTORIAL, as_version=4)


def code_hash(notebook: Any) -> str:
    """Return a hash of the code in all cells: outputs with the same hash are those of this code."""
    return hashlib.sha256('\0'.join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def execute(folder: Path, **environment: Any) -> Any:
    """Return the tutorial with the outputs of a run in ``folder``; ``environment`` is that of the new process.

    The metadata of the notebook get the hash of its code and the seconds of the run.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = read()
    client = NotebookClient(notebook, timeout=3600, kernel_name='python3', record_timing=False, coalesce_streams=True,
                            resources={'metadata': {'path': str(folder)}})
    start = time.perf_counter()
    client.execute(**environment)
    notebook.metadata.update(code_sha256=code_hash(notebook), seconds=round(time.perf_counter() - start))
    return notebook


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as temporary:
        nbformat.write(execute(Path(temporary)), TUTORIAL)
    print(TUTORIAL)

"""Files that are written: whole or not at all, and never over what they are made of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmws.errors import WSError, near_matches

__all__ = ['atomic_write', 'check_input', 'check_output', 'check_output_folder', 'read_json']


def check_input(what: str, path: str | Path) -> Path:
    """Return the path of a file that is to be read.

    Raises:
        WSError: if it is not there, or is a folder.

    Example:
        >>> check_input('config', 'nowhere/net.py')
        Traceback (most recent call last):
        mmws.errors.WSError: there is no config nowhere/net.py; in nowhere: there is none
    """
    path = Path(path)
    if path.is_dir():
        raise WSError(f'{path} is a folder, where a {what} is expected')
    if not path.is_file():
        there = [other.name for other in path.parent.glob(f'*{path.suffix}') if other.is_file()]
        raise WSError(f'there is no {what} {path}; in {path.parent}: {near_matches(path.name, there)}')
    return path


def check_output(path: str | Path, *sources: str | Path, endings: tuple[str, ...] = ()) -> None:
    """Look at where a file is to be written, before the work for it.

    Args:
        path: of the file; what stands there may be replaced.
        *sources: files that it is made of.
        endings: that its name may have; without, any.

    Raises:
        WSError: if the name ends otherwise, there is no such folder, a folder stands there, or it is one of
            ``sources``.

    Example:
        >>> check_output('model.onnx', endings=('.pth', '.safetensors'))
        Traceback (most recent call last):
        mmws.errors.WSError: model.onnx: expected a name that ends in .pth or .safetensors
    """
    path = Path(path)
    if endings and path.suffix not in endings:
        raise WSError(f'{path}: expected a name that ends in {" or ".join(endings)}')
    if not path.absolute().parent.is_dir():
        raise WSError(f'{path}: there is no folder {path.parent}')
    if path.is_dir():
        raise WSError(f'{path} is a folder; give the name of a file')
    for source in sources:
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise WSError(f'{path} is what it is to be made of and would be lost; give another name')


def check_output_folder(path: Path) -> None:
    """Look at the folder that results are to be written to, before the work for them; it need not be there yet.

    Raises:
        WSError: if something that is no folder stands there or above, or nothing can be written there.
    """
    above = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise WSError(f'{path if path.exists() else above} is no folder; give another --out')
    if not os.access(above, os.W_OK, effective_ids=True):
        raise WSError(f'nothing can be written to {above}; give another --out')


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        WSError: if it is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # of JSON and of the encoding
        raise WSError(f'{path} is no JSON: {error}') from None


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield where to write what is to stand at ``path``; it comes there in one step, if the block comes to its end.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / 'x.txt'
        >>> with atomic_write(path) as partial:
        ...     _ = partial.write_text('all of it')
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('all of it', 1)
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

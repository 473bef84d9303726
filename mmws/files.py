"""Check input and output paths, read and write JSON, write files atomically."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmws.errors import WSError, near_matches

__all__ = ['atomic_write', 'check_input', 'check_output', 'check_output_folder', 'new_folder', 'read_json',
           'save_figure', 'write_json', 'write_text']


def check_input(kind: str, path: str | Path) -> Path:
    """Return the path of an input file; ``kind`` names the file in the error message.

    Raises:
        WSError: if the file does not exist, is a folder or is a URL.

    Example:
        >>> check_input('config', 'nowhere/net.py')
        Traceback (most recent call last):
        mmws.errors.WSError: config nowhere/net.py not found; the folder nowhere does not exist
    """
    if '://' in str(path):
        raise WSError(f'{kind} {path} is a URL, expected a file; download it, and give its path')
    path = Path(path)
    if path.is_dir():
        raise WSError(f'{path} is a folder, expected a {kind} file')
    if not path.is_file():
        folder = path.parent
        names = [other.name for other in folder.glob(f'*{path.suffix}') if other.is_file()]
        reason = (f'in {folder}: {near_matches(path.name, names)}' if names else
                  f'the folder {folder} has no {path.suffix or "such"} file' if folder.is_dir() else
                  f'the folder {folder} does not exist')
        raise WSError(f'{kind} {path} not found; {reason}')
    return path


def check_output(path: str | Path, *sources: str | Path, endings: tuple[str, ...] = ()) -> None:
    """Check the path of an output file before the work starts. An existing file is allowed.

    Args:
        path: output file.
        *sources: input files, which the output must not overwrite.
        endings: allowed suffixes of the name; if empty, any.

    Raises:
        WSError: if the suffix is wrong, the parent folder does not exist, or ``path`` is a folder or an input.

    Example:
        >>> check_output('model.onnx', endings=('.pth', '.safetensors'))
        Traceback (most recent call last):
        mmws.errors.WSError: model.onnx: expected a name that ends in .pth or .safetensors
    """
    path = Path(path)
    if endings and path.suffix not in endings:
        raise WSError(f'{path}: expected a name that ends in {" or ".join(endings)}')
    if not path.absolute().parent.is_dir():
        raise WSError(f'{path}: folder {path.parent} not found')
    if path.is_dir():
        raise WSError(f'{path} is a folder, expected a file name')
    if path.exists() and any(Path(source).exists() and path.samefile(source) for source in sources):
        raise WSError(f'output would overwrite its input {path}; choose another name')


def check_output_folder(path: Path) -> None:
    """Check the folder for results before the work starts. The folder may not exist yet.

    Raises:
        WSError: if it or a parent is not a folder, or is not writable.
    """
    above = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise WSError(f'{path if path.exists() else above} is not a folder; choose another --out')
    if not os.access(above, os.W_OK, effective_ids=True):
        raise WSError(f'no permission to write to {above}; choose another --out')


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        WSError: if it is not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # invalid JSON or invalid UTF-8
        raise WSError(f'{path} is not valid JSON: {error}') from None


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write ``content`` as JSON with a final newline. A failure leaves the old file unchanged."""
    write_text(path, f'{json.dumps(content, indent=indent)}\n')


def write_text(path: str | Path, text: str) -> None:
    """Write ``text``. A failure leaves the old file unchanged."""
    with atomic_write(path) as partial:
        partial.write_text(text)


def save_figure(figure: Any, path: Path, dpi: int, grey: bool = False) -> None:
    """Save a figure of matplotlib in the format that the suffix names. A failure leaves the old file unchanged.

    ``grey`` is for a PNG without colours: the file is smaller.
    """
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=dpi, format=path.suffix[1:])
        if grey:
            from PIL import Image  # matplotlib needs it too

            with Image.open(partial) as image:
                image.convert('L').save(partial, 'PNG', optimize=True)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to ``path`` if the block raises no exception.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / 'x.txt'
        >>> with atomic_write(path) as partial:
        ...     _ = partial.write_text('complete')
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('complete', 1)
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder, and rename it to ``path`` if the block raises no exception.

    Raises:
        WSError: if ``path`` exists, or the folder to contain it does not.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / 'new'
        >>> with new_folder(path) as partial:
        ...     _ = (partial / 'x.txt').write_text('complete')
        >>> [str(each.relative_to(path.parent)) for each in path.parent.rglob('*')]
        ['new', 'new/x.txt']
    """
    path = Path(path)
    if os.path.lexists(path):
        raise WSError(f'{path} exists already; choose another folder')
    check_output(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    partial.mkdir()
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

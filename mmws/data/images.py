"""Read and write image files, with errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mmws.errors import WSError

__all__ = ['Array', 'find_folder', 'read_image', 'read_map', 'write_image']

Array = NDArray[Any]


def find_folder(source: str | Path, name: str, repository: str) -> Path:
    """Return the folder ``name`` of a clone of ``repository``.

    Raises:
        WSError: if ``source`` does not have it.
    """
    folder = Path(source, name)
    if not folder.is_dir():
        found = 'a folder without it' if Path(source).is_dir() else 'nothing'
        raise WSError(f'{source}: expected a clone of {repository} with the folder {name}, got {found}')
    return folder


def read_image(path: Path, flags: int = cv2.IMREAD_COLOR) -> Array:
    """Return an image; in colour as BGR.

    Raises:
        WSError: if the file is missing or is not an image.
    """
    image = cv2.imread(str(path), flags) if path.is_file() else None
    if image is None:
        raise WSError(f'{path} {"is not a readable image" if path.is_file() else "not found"}')
    return np.asarray(image)


def read_map(path: Path, shape: tuple[int, ...]) -> Array:
    """Return a mask or a label map; ``shape`` is the one of its image, (height, width).

    Raises:
        WSError: if the file is missing, is not an image, or has another shape.
    """
    labels = read_image(path, cv2.IMREAD_GRAYSCALE)
    if labels.shape != shape:
        raise WSError(f'{path}: expected the size of its image, {shape[1]}x{shape[0]} pixels, got '
                      f'{labels.shape[1]}x{labels.shape[0]}')
    return labels


def write_image(path: Path, image: Array, *options: int) -> None:
    """Write an image, and its folder if necessary; ``options`` are those of ``cv2.imwrite``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image.astype(np.uint8), options):
        raise OSError(f'cannot write {path}')

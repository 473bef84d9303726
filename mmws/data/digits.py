"""Handwritten digits on photographs: a small COCO-format dataset made from what scikit-learn carries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits, load_sample_images

from mmws.errors import WSError
from mmws.files import atomic_write, read_json

__all__ = ['make_digits', 'make_single_digits']

Array = NDArray[Any]
HELD_OUT = 297  # the last of the 1,797 digits, by other writers than most of the rest, are for validation
SIZES = (32, 853)  # in pixels: below, the digits have too few, and above, the photos
MANY = 10**6  # images: as many as their names have room for
MOST_OVERLAP = 0.1  # of the smaller box


def make_digits(root: str | Path, train: int = 1200, val: int = 100, size: int = 256, seed: int = 0) -> Path:
    """Write a dataset of real handwriting on real photographs, for detection and for segmentation.

    Each image is a crop of one of the two sample photos of scikit-learn with one to five 8x8 digits of
    ``load_digits`` scaled up, coloured and pasted on it. Digits of the validation images do not occur in training.
    The same arguments give the same files.

    Writes ``images/{train,val}/*.jpg``; ``annotations/{train,val}.json`` in COCO's format, with the digit as category
    name, boxes in pixels and polygons; ``masks/{train,val}/*.png`` with 0 for background and digit + 1 elsewhere.

    Args:
        root: folder to write to.
        train: number of training images.
        val: number of validation images.
        size: height and width of the images in pixels.
        seed: of all that is random.

    Returns:
        ``root`` as a path. If the same dataset lies there already, nothing is done.

    Raises:
        WSError: if another dataset lies there, or a number is out of range.

    Example:
        >>> import tempfile
        >>> root = make_digits(Path(tempfile.mkdtemp()) / 'digits', train=2, val=1)
        >>> sorted(path.name for path in root.glob('images/*/*'))
        ['000000.jpg', '000000.jpg', '000001.jpg']
    """
    root = Path(root)
    for name, value, least, most in (('train', train, 0, MANY), ('val', val, 0, MANY), ('size', size, *SIZES),
                                     ('seed', seed, 0, 2**32 - 1)):
        if type(value) is not int or not least <= value <= most:
            raise WSError(f'{name}: expected a whole number from {least} to {most}, got {value!r}')
    digits, photos = load_digits(), [photo[:, :, ::-1] for photo in load_sample_images().images]
    for number, (split, count) in enumerate({'train': train, 'val': val}.items()):
        info = {'description': 'digits on photographs', 'split': split, 'images': count, 'size': size, 'seed': seed}
        if _is_there(root / 'annotations' / f'{split}.json', info):
            continue
        held_out = slice(-HELD_OUT, None) if split == 'val' else slice(-HELD_OUT)
        source = list(zip(digits.images[held_out], digits.target[held_out].tolist(), strict=True))
        images: list[Any] = []
        annotations: list[Any] = []
        for index in track(range(count), f'digits: {split}', console=Console(stderr=True)):
            rng = np.random.default_rng([seed, number, index])
            image, mask, found = _compose(photos, source, size, rng)
            name = f'{index:06d}'
            _write(root / 'images' / split / f'{name}.jpg', image)
            _write(root / 'masks' / split / f'{name}.png', mask)
            images.append({'id': index, 'file_name': f'{name}.jpg', 'height': size, 'width': size})
            annotations += [{'id': len(annotations) + i + 1, 'image_id': index, **one} for i, one in enumerate(found)]
        categories = [{'id': digit + 1, 'name': str(digit)} for digit in range(10)]
        _write_last(root / 'annotations' / f'{split}.json', {
            'info': info, 'images': images, 'annotations': annotations, 'categories': categories})
    return root


def make_single_digits(root: str | Path, size: int = 16) -> Path:
    """Write the 8x8 digits of ``load_digits`` alone, for classification, split as in :func:`make_digits`.

    Writes ``{train,val}/<digit>/*.png``, 1,500 and 297 of them; the same arguments give the same files.

    Args:
        root: folder to write to.
        size: height and width of the images in pixels.

    Returns:
        ``root`` as a path. If the same dataset lies there already, nothing is done.

    Raises:
        WSError: if another dataset lies there.
    """
    root, digits = Path(root), load_digits()
    info = {'description': 'single digits', 'size': size}
    if _is_there(root / 'info.json', info):
        return root
    for index in track(range(len(digits.images)), 'digits: single', console=Console(stderr=True)):
        split = 'val' if index >= len(digits.images) - HELD_OUT else 'train'
        ink = cv2.resize(digits.images[index] * (255 / 16), (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        _write(root / split / str(digits.target[index]) / f'{index:04d}.png', ink.astype(np.uint8))
    _write_last(root / 'info.json', {'info': info})
    return root


def _is_there(annotations: Path, info: dict[str, Any]) -> bool:
    if not annotations.is_file():
        return False
    content = read_json(annotations)
    there = content.get('info') if isinstance(content, dict) else None
    if there != info:
        raise WSError(f'{annotations} holds another dataset: got {there}, expected {info}; '
                      'delete the folder or choose another one')
    return True


def _compose(photos: list[Array], source: list[tuple[Array, int]], size: int,
             rng: np.random.Generator) -> tuple[Array, Array, list[Any]]:
    """One image (BGR), its semantic mask and its COCO annotations."""
    image = _background(photos[rng.integers(len(photos))], size, rng)
    instances = np.zeros((size, size), np.uint8)
    labels: list[int] = []
    for box in _boxes(size, int(rng.integers(1, 6)), rng):
        digit, label = source[rng.integers(len(source))]
        _paste(image, instances, box, digit, len(labels) + 1, rng)
        labels.append(label)
    semantic = np.zeros_like(instances)
    annotations = []
    for number, label in enumerate(labels, 1):
        polygons = _polygons(instances == number)
        if polygons:
            region = coco_mask.merge(coco_mask.frPyObjects(polygons, size, size))
            semantic[coco_mask.decode(region) > 0] = label + 1
            annotations.append({'category_id': label + 1, 'iscrowd': 0, 'area': float(coco_mask.area(region)),
                                'bbox': coco_mask.toBbox(region).tolist(), 'segmentation': polygons})
    return image, semantic, annotations


def _background(photo: Array, size: int, rng: np.random.Generator) -> Array:
    side = int(rng.integers(size // 2, min(photo.shape[:2])))
    top, left = (int(rng.integers(extent - side + 1)) for extent in photo.shape[:2])
    crop = cv2.resize(photo[top:top + side, left:left + side], (size, size), interpolation=cv2.INTER_AREA)
    return crop[:, ::-1].copy() if rng.random() < 0.5 else crop


def _boxes(size: int, count: int, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """Up to ``count`` squares (left, top, side) that hardly overlap."""
    taken: list[tuple[int, int, int]] = []
    for _ in range(10 * count):
        side = int(rng.integers(size * 3 // 16, size // 2))
        left, top = (int(at) for at in rng.integers(0, size - side + 1, 2))
        if len(taken) < count and all(_overlap((left, top, side), other) <= MOST_OVERLAP for other in taken):
            taken.append((left, top, side))
            yield left, top, side


def _overlap(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    width, height = (min(a[i] + a[2], b[i] + b[2]) - max(a[i], b[i]) for i in (0, 1))
    return max(width, 0) * max(height, 0) / min(a[2], b[2]) ** 2


def _paste(image: Array, instances: Array, box: tuple[int, int, int], digit: Array, number: int,
           rng: np.random.Generator) -> None:
    left, top, side = box
    ink = np.clip(cv2.resize(digit / 16, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)
    ink = np.clip(3 * ink - 1, 0, 1)  # a firmer edge than 8x8 pixels give
    window = np.s_[top:top + side, left:left + side]
    colour = rng.uniform(0, 255, 3)
    colour += (255 if image[window].mean() < 128 else 0) - colour.mean() * 0.6  # lighter on dark, darker on light
    blend = ink[..., None]
    image[window] = ((1 - blend) * image[window] + blend * np.clip(colour, 0, 255)).astype(np.uint8)
    instances[window][ink > 0.5] = number


def _polygons(mask: Array) -> list[list[float]]:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.ravel().astype(float).tolist() for contour in contours if cv2.contourArea(contour) >= 4]


def _write(path: Path, image: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f'{path}: could not be written')


def _write_last(path: Path, content: dict[str, Any]) -> None:
    """Write in one step: a file that is there is whole, and says that all the images are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content))

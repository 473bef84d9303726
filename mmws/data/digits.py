"""Dataset of handwritten digits on photographs, made from the data in scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits, load_sample_images

from mmws.data.images import Array, write_image
from mmws.errors import WSError
from mmws.files import read_json, write_json

__all__ = ['make_digits', 'make_single_digits']

HELD_OUT = 297  # the last 297 of 1,797 digits, for validation; most of the others have other writers
MAX_IMAGES = 10**6  # file names have six digits
SIZES = (32, 853)  # size of an image: below 32 a digit has too few pixels, above 853 a crop does not fit in a photo
MAX_OVERLAP = 0.1  # of the smaller box
SPLITS = ('train', 'val')


def make_digits(root: str | Path, train: int = 1200, val: int = 100, size: int = 256, seed: int = 0) -> Path:
    """Write a dataset of handwritten digits on photographs, for detection and segmentation.

    Each image is a crop of a sample photo of scikit-learn. It contains one to five 8x8 digits of ``load_digits``,
    scaled up and coloured. Validation digits do not occur in training. The same arguments give the same files.

    Writes ``images/{train,val}/*.jpg``; ``annotations/{train,val}.json`` in COCO format, with boxes in pixels and
    polygons; ``masks/{train,val}/*.png`` with 0 for background and digit + 1 elsewhere.

    Args:
        root: folder to write to.
        train: number of training images.
        val: number of validation images.
        size: height and width of the images in pixels.
        seed: random seed.

    Returns:
        ``root`` as a path. If it contains the same dataset already, the files stay as they are.

    Raises:
        WSError: if ``root`` contains another dataset, or a number is out of range.

    Example:
        >>> import tempfile
        >>> root = make_digits(Path(tempfile.mkdtemp()) / 'digits', train=2, val=1)
        >>> sorted(path.name for path in root.glob('images/*/*'))
        ['000000.jpg', '000000.jpg', '000001.jpg']
    """
    for name, value, least, most in (('train', train, 0, MAX_IMAGES), ('val', val, 0, MAX_IMAGES),
                                     ('size', size, *SIZES), ('seed', seed, 0, 2**32 - 1)):
        if type(value) is not int or not least <= value <= most:
            raise WSError(f'{name}: expected a whole number from {least} to {most}, got {value!r}')
    for split, count in zip(SPLITS, (train, val)):
        info = {'description': 'digits on photographs', 'split': split, 'images': count, 'size': size, 'seed': seed}
        if not _exists(Path(root, 'annotations', f'{split}.json'), info):
            _make_split(Path(root), split, info)
    return Path(root)


def make_single_digits(root: str | Path, size: int = 16) -> Path:
    """Write single 8x8 digits of ``load_digits`` for classification, with the split of :func:`make_digits`.

    Writes 1,500 and 297 images ``{train,val}/<digit>/*.png`` of ``size`` x ``size`` pixels. ``root``, the returned
    path, an existing dataset and the errors are as in :func:`make_digits`.
    """
    root, digits = Path(root), load_digits()
    info = {'description': 'single digits', 'size': size}
    if not _exists(root / 'info.json', info):
        for index in track(range(len(digits.images)), 'digits: single', console=Console(stderr=True)):
            split = SPLITS[index >= len(digits.images) - HELD_OUT]
            ink = cv2.resize(digits.images[index] * (255 / 16), (size, size), interpolation=cv2.INTER_CUBIC)
            write_image(root / split / str(digits.target[index]) / f'{index:04d}.png', ink.clip(0, 255))
        write_json(root / 'info.json', {'info': info})
    return root


def _exists(annotations: Path, info: dict[str, Any]) -> bool:
    if not annotations.is_file():
        return False
    content = read_json(annotations)
    found = content.get('info') if isinstance(content, dict) else None
    if found != info:
        raise WSError(f'{annotations} contains another dataset: got {found}, expected {info}; choose another folder')
    return True


def _make_split(root: Path, split: str, info: dict[str, Any]) -> None:
    """Write images and masks, then the annotations: if they exist, the split is complete."""
    digits, photos, size = load_digits(), [photo[:, :, ::-1] for photo in load_sample_images().images], info['size']
    chosen = slice(-HELD_OUT, None) if split == 'val' else slice(-HELD_OUT)
    source = list(zip(digits.images[chosen], digits.target[chosen].tolist()))
    content: dict[str, Any] = {'info': info, 'images': [], 'annotations': [],
                               'categories': [{'id': digit + 1, 'name': str(digit)} for digit in range(10)]}
    for index in track(range(info['images']), f'digits: {split}', console=Console(stderr=True)):
        rng = np.random.default_rng([info['seed'], SPLITS.index(split), index])
        image, mask, found = _compose(photos, source, size, rng)
        name = f'{index:06d}'
        write_image(root / 'images' / split / f'{name}.jpg', image)
        write_image(root / 'masks' / split / f'{name}.png', mask)
        content['images'].append({'id': index, 'file_name': f'{name}.jpg', 'height': size, 'width': size})
        first = len(content['annotations']) + 1
        content['annotations'] += [{'id': number, 'image_id': index, **one} for number, one in enumerate(found, first)]
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    write_json(root / 'annotations' / f'{split}.json', content)


def _compose(photos: list[Array], source: list[tuple[Array, int]], size: int,
             rng: np.random.Generator) -> tuple[Array, Array, list[Any]]:
    """Return an image (BGR), its semantic mask and its COCO annotations."""
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
    """Yield up to ``count`` squares (left, top, side) that overlap by 10 % at most."""
    taken: list[tuple[int, int, int]] = []
    for _ in range(10 * count):
        side = int(rng.integers(size * 3 // 16, size // 2))
        left, top = (int(at) for at in rng.integers(0, size - side + 1, 2))
        if len(taken) < count and all(_overlap((left, top, side), other) <= MAX_OVERLAP for other in taken):
            taken.append((left, top, side))
            yield left, top, side


def _overlap(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    width, height = (min(a[i] + a[2], b[i] + b[2]) - max(a[i], b[i]) for i in (0, 1))
    return max(width, 0) * max(height, 0) / min(a[2], b[2]) ** 2


def _paste(image: Array, instances: Array, box: tuple[int, int, int], digit: Array, number: int,
           rng: np.random.Generator) -> None:
    left, top, side = box
    ink = np.clip(3 * cv2.resize(digit / 16, (side, side), interpolation=cv2.INTER_CUBIC) - 1, 0, 1)  # sharp edges
    window = np.s_[top:top + side, left:left + side]
    colour = rng.uniform(0, 255, 3)
    colour += (255 if image[window].mean() < 128 else 0) - colour.mean() * 0.6  # lighter on dark, darker on light
    blend = ink[..., None]
    image[window] = ((1 - blend) * image[window] + blend * np.clip(colour, 0, 255)).astype(np.uint8)
    instances[window][ink > 0.5] = number


def _polygons(mask: Array) -> list[list[float]]:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.ravel().astype(float).tolist() for contour in contours if cv2.contourArea(contour) >= 4]

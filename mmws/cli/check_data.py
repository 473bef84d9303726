"""Check the datasets of a config: their files exist, and their annotations can be used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from mmws.cli.config import silence
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception
from mmws.openmmlab.config_tree import dicts_in

__all__ = ['check_content', 'check_files', 'datasets_of', 'files_of', 'first_classes', 'missing_files']

HOW_TO_GET = {
    'imagenet': 'get ImageNet 2012 from https://image-net.org/download-images',
    'coco': 'get COCO 2017 from https://cocodataset.org/#download',
    'VOCdevkit': 'get VOC 2012 from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/',
    'data/study': 'run `make study`, which makes it',
    'digits': 'run `python tools/make_digits.py`',
    'data/nuclei': 'run `make data`',
    'data/camvid': 'run `make data`',
}
LARGE = 2**26  # bytes: larger annotation files are not checked here, to save time
MANY = 100_000  # files: larger folders, whose names are the annotations, are not checked here either
NO_IMAGES = 'need at least one array to concatenate'  # numpy's error when mmengine finds no image


def check_files(config: Config, loaders: Sequence[str]) -> None:
    """Check that the files of the data loaders and of their evaluators exist.

    Raises:
        WSError: if one does not, with a source of known datasets.
    """
    missing = missing_files(config, loaders)
    if missing:
        advice = next((how for key, how in HOW_TO_GET.items() if key in str(missing[0])), 'put the data there')
        raise WSError(f'{config.filename} needs {missing[0]}, which does not exist; {advice}, or change data_root')


def missing_files(config: Config, loaders: Sequence[str]) -> list[Path]:
    """Return the missing annotation files and image folders of the data loaders and of their evaluators."""
    scope = config.get('default_scope')
    parts = [dataset for name in loaders for dataset in datasets_of(config.get(name))]
    parts += [part for name in loaders for _, part in dicts_in(config.get(name.replace('dataloader', 'evaluator')))]
    paths = dict.fromkeys(path for part in parts for path in files_of(part, scope))
    return [path for path in paths if not path.exists()]


def datasets_of(loader: Any) -> Iterator[ConfigDict]:
    """Return the config of each dataset in the config of a data loader, inside of wrappers and lists too."""
    keys = {'ann_file', 'data_prefix', 'data_root'}
    return (part for _, part in dicts_in(loader) if 'pipeline' in part and keys & part.keys())


def first_classes(classes: Sequence[Any]) -> str:
    """Return the names of the first five classes.

    Example:
        >>> first_classes('ab'), first_classes('abcdef')
        ('a, b', 'a, b, c, d, e, ...')
    """
    return ', '.join(map(str, classes[:5])) + (', ...' if len(classes) > 5 else '')


def files_of(part: ConfigDict, scope: str | None = None) -> Iterator[Path]:
    """Yield the local files and folders that the config of a dataset or of an evaluator names.

    If it names only ``data_root``, as mmpretrain's ImageNet does, the dataset's class in ``scope`` knows the others.
    """
    if part.get('backend_args'):
        return  # on a server
    root = Path(str(part.get('data_root') or ''))
    prefixes = part.get('data_prefix') or {}
    names = [part.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]
    if part.get('data_root') and not any(names):
        names, root = _known_to_class(part, scope), Path()
    for name in names:
        if name and '://' not in f'{root}{name}':
            yield root / str(name)


def _known_to_class(part: ConfigDict, scope: str | None) -> list[str]:
    """Return the files and folders of a dataset that its class derives from ``data_root`` and other arguments."""
    try:
        with silence(), DATASETS.switch_scope_and_registry(scope):
            dataset = DATASETS.build({**part, 'pipeline': [], 'lazy_init': True})
    except (*FOREIGN_ERRORS, OSError):
        return [part.data_root]  # an unusual class; `check_content` builds it and reports errors
    downloads = getattr(dataset, 'download', False)
    return [] if downloads else [dataset.ann_file, *dataset.data_prefix.values()]


def check_content(config: Config, loaders: Sequence[str]) -> None:
    """Build the datasets of the data loaders and check their annotations, except remote and large ones.

    Raises:
        WSError: if a dataset cannot be built, has no image, lacks a class, has no object to train on, or names images
            that do not exist; the toolkit would fail late, wait forever, or train on wrong data.
    """
    for name in loaders:
        for dataset in datasets_of(config.get(name)):
            paths = list(files_of(dataset, config.default_scope))
            readable = 'type' in dataset and not dataset.get('backend_args') and (paths or not dataset.get('data_root'))
            if readable and not _is_large(paths):
                _check_dataset(f'{config.filename}: {name}', dataset, config.default_scope)


def _is_large(paths: Sequence[Path]) -> bool:
    files = [path for path in paths if path.is_file()]
    if any(path.stat().st_size > LARGE for path in files):
        return True
    inside = chain.from_iterable(chain.from_iterable((names for _, _, names in os.walk(path)) for path in paths))
    return not files and sum(1 for _ in islice(inside, MANY + 1)) > MANY


def _check_dataset(where: str, config: ConfigDict, scope: str) -> None:
    source = next(files_of(config, scope), config.get('data_root'))
    with silence(), DATASETS.switch_scope_and_registry(scope):
        try:
            dataset = DATASETS.build(config)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
        except (*FOREIGN_ERRORS, OSError) as error:
            why = 'it has no images' if NO_IMAGES in str(error) else format_exception(error)
            raise WSError(f'{where}: cannot load the {config.type} of {source}: {why}') from None
    if hasattr(dataset, 'get_data_info'):
        _check_samples(f'{where}: {source}', dataset)


def _check_samples(where: str, dataset: Any) -> None:
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    classes, found = dataset.metainfo.get('classes') or (), getattr(dataset, 'cat_ids', None)
    listed = f'classes {first_classes(classes)}'
    if isinstance(found, list) and len(found) < len(classes):
        raise WSError(f'{where} has only {len(found)} of the {len(classes)} {listed}; '
                      'set metainfo=dict(classes=(...)) to the category names in that file')
    if not dataset.test_mode and 'instances' in samples[0] and not any(sample['instances'] for sample in samples):
        raise WSError(f'{where} has no object to train on of the {listed}')
    list_folder = lru_cache(maxsize=None)(lambda folder: set(os.listdir(folder)) if folder.is_dir() else set())
    paths = [Path(sample[key]) for sample in samples for key in ('img_path', 'seg_map_path') if sample.get(key)]
    missing = [path for path in paths if path.name not in list_folder(path.parent)]
    if missing:
        raise WSError(f'{where}: {len(missing)} of {len(paths)} files do not exist, such as {missing[0]}')

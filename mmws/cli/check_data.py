"""A look into datasets, before a training goes wrong on them."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from mmws.cli.check_config import datasets_of, files_of
from mmws.cli.config import silence
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception

__all__ = ['check_content']

LARGE = 2**26  # bytes: annotations that the toolkit takes long to read, which is not done twice
NOTHING = 'need at least one array to concatenate'  # numpy, on the images that mmengine found


def check_content(config: Config, loaders: Sequence[str]) -> None:
    """Read what the data loaders name as the toolkit will, unless it is on a server or takes long.

    Raises:
        WSError: if a dataset cannot be built as the config says, or holds no image, not all classes, no object to
            train on, or images that are not there; the toolkits would fail late, wait for ever, or train on.
    """
    for name in loaders:
        for dataset in datasets_of(config.get(name)):
            large = any(path.is_file() and path.stat().st_size > LARGE for path in files_of(dataset))
            if 'type' in dataset and not large and not dataset.get('backend_args'):
                _check_content(f'{config.filename}: {name}', dataset, config.default_scope)


def _check_content(where: str, config: ConfigDict, scope: str) -> None:
    source = next((path for path in files_of(config)), config.get('data_root'))
    with silence(), DATASETS.switch_scope_and_registry(scope):
        try:
            dataset = DATASETS.build(config)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
        except (*FOREIGN_ERRORS, OSError) as error:
            why = 'it holds no image' if NOTHING in str(error) else format_exception(error)
            raise WSError(f'{where}: {config.type} of {source} cannot be used: {why}') from None
    if hasattr(dataset, 'get_data_info'):
        _check_samples(f'{where}: {source}', dataset)


def _check_samples(where: str, dataset: Any) -> None:
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    classes, found = dataset.metainfo.get('classes') or (), getattr(dataset, 'cat_ids', None)
    if isinstance(found, list) and len(found) < len(classes):
        raise WSError(f'{where} has {len(found)} of the {len(classes)} classes {", ".join(map(str, classes[:5]))}, ... '
                      'among its categories; set metainfo=dict(classes=(...)) to the names that stand there')
    if not dataset.test_mode and 'instances' in samples[0] and not any(sample['instances'] for sample in samples):
        raise WSError(f'{where} holds no object of the classes {", ".join(map(str, classes[:5]))}, ... to train on')
    listing = functools.cache(lambda folder: set(os.listdir(folder)) if folder.is_dir() else set())
    paths = [Path(sample[key]) for sample in samples for key in ('img_path', 'seg_map_path') if sample.get(key)]
    missing = [path for path in paths if path.name not in listing(path.parent)]
    if missing:
        raise WSError(f'{where} names {len(missing)} of {len(paths)} files that are not there, such as {missing[0]}')

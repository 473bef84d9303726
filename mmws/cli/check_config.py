"""Look for the mistakes in data and config that the toolkits would report late, or never."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, HOOKS, LOOPS, METRICS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS, Registry

from mmws.cli.config import silence
from mmws.errors import WSError, near_matches

__all__ = ['check_classes', 'check_data', 'check_types', 'datasets_of', 'files_of', 'missing_data']

HEADS = ('bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head', 'decode_head', 'auxiliary_head')
HOW_TO_GET = {
    'coco': 'get COCO 2017 from https://cocodataset.org/#download',
    'VOCdevkit': 'get VOC 2012 from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/',
    'digits': 'run `python tools/make_digits.py`',
}

TYPES = {'optim_wrapper': OPTIM_WRAPPERS, 'optim_wrapper.optimizer': OPTIMIZERS, 'param_scheduler': PARAM_SCHEDULERS,
         'custom_hooks': HOOKS, 'train_cfg': LOOPS, 'val_cfg': LOOPS, 'test_cfg': LOOPS, 'val_evaluator': METRICS,
         'test_evaluator': METRICS}
"""What of a config the toolkit builds when the model and the data are there already, by registry."""


def check_types(config: Config) -> None:
    """Look for the types that the run will need besides the model and the data, see :data:`TYPES`.

    Raises:
        WSError: if one is not known.
    """
    for where, registry in TYPES.items():
        part = _part(config, where)
        for one in part if isinstance(part, (list, tuple)) else [part]:
            kind = one.get('type') if isinstance(one, dict) else None
            if isinstance(kind, str) and not _is_known(kind, registry, config.default_scope):
                raise WSError(f'{config.filename}: {where}: unknown type {kind!r}; '
                              f'{near_matches(kind, registry.module_dict)}')


def _is_known(kind: str, registry: Registry, scope: str) -> bool:
    with silence(), registry.switch_scope_and_registry(scope) as inner:
        try:
            return inner.get(kind) is not None
        except RuntimeError:  # OneDL's mmengine raises where upstream's returns None
            return False


def _part(config: Any, where: str) -> Any:
    return functools.reduce(lambda part, key: part.get(key) or {}, where.split('.'), config)


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
    """Return the annotation files and image folders that the data loaders name and that are not there.

    Those of their evaluators are among them.
    """
    paths = [path for name in loaders for dataset in datasets_of(config.get(name)) for path in files_of(dataset)]
    for name in loaders:
        evaluator = config.get(name.replace('dataloader', 'evaluator'))
        paths += [path for part in (evaluator if isinstance(evaluator, list) else [evaluator])
                  if isinstance(part, dict) for path in files_of(part)]
    return [path for path in dict.fromkeys(paths) if not path.exists()]


def check_classes(config: Config, loader: str) -> None:
    """Compare ``num_classes`` of the model's heads with the classes of the data.

    Raises:
        WSError: if they differ; the toolkits would train on, or fail far from here.
    """
    if 'language_model' in config.model:
        return  # open vocabulary: the classes come with the text, and num_classes bounds the tokens
    dataset = next(datasets_of(config.get(loader)), ConfigDict())
    classes, things = _classes(dataset, config.default_scope)
    for head in HEADS if classes else ():
        part = _part(config.model, head)
        for one in part if isinstance(part, (list, tuple)) else [part]:
            if one.get('num_classes', len(classes)) not in (len(classes), things) and 'boundary_threshold' not in one:
                raise WSError(f'model.{head}.num_classes is {one.num_classes!r}, but {dataset.type} in {loader} has '
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
    if isinstance(classes, str):
        if not Path(classes).is_file():
            raise WSError(f'{dataset.type}: metainfo.classes is the text {classes!r}; expected a tuple of names, as in '
                          f'({classes!r},), or a file of them')
        classes = Path(classes).read_text().splitlines()
    return classes, len(metainfo.get('thing_classes') or classes)


def datasets_of(config: Any) -> Iterator[ConfigDict]:
    """Yield the configs of the datasets in that of a data loader, those inside wrappers and lists too."""
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from datasets_of(part)
    elif isinstance(config, dict):
        if 'pipeline' in config and ('ann_file' in config or 'data_prefix' in config):
            yield config
        for part in config.values():
            yield from datasets_of(part)


def files_of(dataset: ConfigDict) -> Iterator[Path]:
    """Yield the files and folders that the config of a dataset or an evaluator names, but for those on a server."""
    if dataset.get('backend_args'):
        return  # on a server
    root = Path(str(dataset.get('data_root') or ''))
    prefixes = dataset.get('data_prefix') or {}
    for name in [dataset.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]:
        if name and '://' not in f'{root}{name}':
            yield root / str(name)

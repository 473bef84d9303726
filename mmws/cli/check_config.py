"""Check the types in a config, and the classes of its model against those of its data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, HOOKS, LOOPS, METRICS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS

from mmws.cli.check_data import datasets_of, first_classes
from mmws.cli.config import silence
from mmws.errors import WSError, near_matches
from mmws.openmmlab.mmengine_compat import find_type
from mmws.openmmlab.toolkits import HEADS

__all__ = ['check_classes', 'check_types']

TYPES = {'optim_wrapper': OPTIM_WRAPPERS, 'optim_wrapper.optimizer': OPTIMIZERS, 'param_scheduler': PARAM_SCHEDULERS,
         'custom_hooks': HOOKS, 'train_cfg': LOOPS, 'val_cfg': LOOPS, 'test_cfg': LOOPS, 'val_evaluator': METRICS,
         'test_evaluator': METRICS}
"""Registries by config key, for the types that the toolkit builds after the model and the data."""


def check_types(config: Config) -> None:
    """Check the types at the keys of :data:`TYPES`.

    Raises:
        WSError: if one is not registered.
    """
    for key, registry in TYPES.items():
        for name in [part.get('type') for part in _dicts_at(config, key)]:
            with silence(), registry.switch_scope_and_registry(config.default_scope) as scoped:
                unknown = isinstance(name, str) and find_type(scoped, name) is None
            if unknown:
                raise WSError(f'{config.filename}: {key}: unknown type {name!r}; '
                              f'{near_matches(name, registry.module_dict)}')


def check_classes(config: Config, loader: str) -> None:
    """Compare ``num_classes`` of the model's heads with the classes of the dataset.

    Raises:
        WSError: if they differ; the toolkit would train a wrong model, or fail with an index error.
    """
    dataset = next(datasets_of(config.get(loader)), ConfigDict())
    if 'type' not in dataset or 'language_model' in config.model:
        return  # open vocabulary: the classes come with the text, and num_classes limits the tokens
    classes, things = _classes(dataset, config.default_scope)
    heads = [(key, head) for key in HEADS for head in _dicts_at(config.model, key)] if classes else []
    for key, head in heads:
        if head.get('num_classes', things) not in (len(classes), things) and 'boundary_threshold' not in head:
            raise WSError(f'model.{key}.num_classes is {head.num_classes!r}, but {dataset.type} in {loader} has '
                          f'{len(classes)} classes: {first_classes(classes)}; make num_classes match the dataset, '
                          'or set metainfo=dict(classes=(...)) in each dataset')


def _dicts_at(config: Any, path: str) -> list[Any]:
    """Return the dict, or the dicts of the list, at ``path``, such as ``roi_head.bbox_head``."""
    part = reduce(lambda part, key: part.get(key) or {}, path.split('.'), config)
    return [inner for inner in (part if isinstance(part, (list, tuple)) else [part]) if isinstance(inner, dict)]


def _classes(dataset: ConfigDict, scope: str) -> tuple[Sequence[str], int]:
    """Return the classes, and the number of thing classes, which the detector of a panoptic model predicts."""
    with silence(), DATASETS.switch_scope_and_registry(scope) as registry:
        kind = find_type(registry, dataset.type) if isinstance(dataset.type, str) else dataset.type
    metainfo = {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    classes = metainfo.get('classes') or metainfo.get('CLASSES') or ()
    if isinstance(classes, str):
        if not Path(classes).is_file():
            raise WSError(f'{dataset.type}: metainfo.classes is the string {classes!r}; expected a tuple of names, as '
                          f'in ({classes!r},), or a file with a name on each line')
        classes = Path(classes).read_text().splitlines()
    return classes, len(metainfo.get('thing_classes') or classes)

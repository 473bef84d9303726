"""Images for a transplant, and the pass of a toolkit's model over them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from torch import nn
from torch.utils.data import Dataset

from mmws.cli.check_data import datasets_of
from mmws.cli.config import silence
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception

__all__ = ['Forward', 'ImageFiles', 'image_paths', 'load_batch', 'preprocess', 'spread']

SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
MOST_PIXELS = 2**24
MOST_REGIONS = 512  # of a batch


def image_paths(config: Config, folder: Path | None) -> list[str]:
    """Return the images in a folder, or in the training data of ``config``, each once.

    Raises:
        WSError: if there are none.
    """
    if folder is not None:
        if not folder.is_dir():
            raise WSError(f'--images: folder {folder} not found')
        paths = sorted(str(path) for path in folder.rglob('*')
                       if path.suffix.lower() in SUFFIXES and path.is_file())
        where = f'--images {folder}'
    else:
        where = f'{config.filename}: train_dataloader.dataset'
        try:
            with silence(), DefaultScope.overwrite_default_scope(config.default_scope):
                dataset = DATASETS.build(config.train_dataloader.dataset)
            paths = [*dict.fromkeys(str(dataset.get_data_info(index)['img_path']) for index in range(len(dataset)))]
        except (*FOREIGN_ERRORS, OSError) as error:
            raise WSError(f'{where} gives no paths of images ({format_exception(error)}); name a folder with --images'
                          ) from None
    if not paths:
        raise WSError(f'{where}: expected images, got none')
    return paths


def spread(length: int, number: int) -> list[int]:
    """Return ``number`` indices below ``length`` at equal distances, or all.

    Example:
        >>> spread(6, 3)
        [0, 2, 4]
    """
    step = max(length / number, 1)
    return [int(index * step) for index in range(min(number, length))]


class ImageFiles(Dataset[Any]):
    """Images through the pipeline of the test data, without annotations.

    Raises:
        WSError: if the config has no such pipeline; at an index whose image cannot be read.
    """

    def __init__(self, config: Config, paths: Sequence[str]) -> None:
        loaders = [config.get(f'{name}_dataloader') for name in ('test', 'val', 'train')]
        dataset = next((dataset for loader in loaders if loader for dataset in datasets_of(loader)), None)
        if dataset is None:
            raise WSError(f'{config.filename}: expected a dataset with a pipeline, which prepares the images, in '
                          'test_dataloader, val_dataloader or train_dataloader; got none')
        steps = [step for step in dataset.pipeline if 'Annotations' not in str(step['type'])]
        with DefaultScope.overwrite_default_scope(config.default_scope):
            self._pipeline, self.paths = Compose(steps), list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        try:
            loaded: dict[str, Any] = self._pipeline({
                'img_path': path, 'img_id': index, 'seg_fields': [], 'label_map': None, 'reduce_zero_label': False})
        except (*FOREIGN_ERRORS, OSError) as error:
            raise WSError(f'cannot read the image {path}: {format_exception(error)}') from None
        return loaded


def load_batch(model: Any, dataset: ImageFiles, number: int) -> tuple[dict[str, Any], list[str]]:
    """Return a batch of ``number`` images, evenly spaced, as the model gets it, and their paths.

    There are fewer if they are large, with more than :data:`MOST_PIXELS` together, or if their sizes differ and the
    model's preprocessor does not pad.
    """
    chosen = spread(len(dataset), max(1, min(number, MOST_PIXELS // dataset[0]['inputs'][0].numel())))
    data, kept = preprocess(model, [dataset[index] for index in chosen])
    return data, [dataset.paths[chosen[index]] for index in kept]


def preprocess(model: Any, loaded: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[int]]:
    """Return the images as the model gets them, and their indices: of the most common size if it does not pad."""
    try:
        return dict(model.data_preprocessor(pseudo_collate(list(loaded)), False)), list(range(len(loaded)))
    except (AssertionError, RuntimeError):
        sizes = [tuple(one['inputs'].shape) for one in loaded]
        common = Counter(sizes).most_common(1)[0][0]
        kept = [index for index, size in enumerate(sizes) if size == common]
        if len(kept) == len(sizes):  # mmseg before 1.1 takes one image at a time
            return _one_by_one(model, loaded), kept
        return preprocess(model, [loaded[index] for index in kept])[0], kept


def _one_by_one(model: Any, loaded: Sequence[dict[str, Any]]) -> dict[str, Any]:
    parts = [dict(model.data_preprocessor(pseudo_collate([one]), False)) for one in loaded]
    return {'inputs': torch.cat([part['inputs'] for part in parts]),
            'data_samples': [sample for part in parts for sample in part.get('data_samples') or []]}


class Forward:
    """A pass of a toolkit's model, or of its backbone, over a batch, for :func:`mmws.transplant_`.

    It returns features and outputs of as much of the model as possible, auxiliary heads too. The first call is that of
    the BatchNorm network. Later calls give a detector's heads its regions, so that their inputs correspond.

    Args:
        model: the BatchNorm network, which runs on one image here, to find out how it runs.
        part: ``'backbone'`` if only the backbone counts.
        data: the batch.
    """

    def __init__(self, model: Any, part: str, data: dict[str, Any]) -> None:
        self.start()
        self._run: Callable[[Any, dict[str, Any]], Any] = _run_backbone if part else _extract
        one = {'inputs': data['inputs'][:1], 'data_samples': (data.get('data_samples') or [None])[:1]}
        for mode in () if part else ('tensor', 'predict'):
            try:
                with torch.no_grad():
                    _run_model(mode, model, one)
            except FOREIGN_ERRORS:
                continue
            self._run = partial(_run_model, mode)
            break

    def start(self) -> None:
        """Forget the regions: the next call is that of the BatchNorm network on another batch."""
        self._proposals: Any = None

    def __call__(self, network: Any, data: dict[str, Any]) -> Any:
        head: Any = getattr(network, 'rpn_head', None)
        if head is None:
            return self._run(network, data)
        predict = head.predict
        head.predict = partial(self._propose, predict)
        try:
            return self._run(network, data)
        finally:
            del head.predict

    def _propose(self, predict: Any, *args: Any, **kwargs: Any) -> Any:
        if self._proposals is None:
            proposals = predict(*args, **kwargs)
            self._proposals = [one[:max(1, MOST_REGIONS // len(proposals))] for one in proposals]
        return copy.deepcopy(self._proposals)


def _run_backbone(network: Any, data: dict[str, Any]) -> Any:
    return network(data['inputs'])


def _extract(network: Any, data: dict[str, Any]) -> Any:
    return network.extract_feat(data['inputs'])


def _run_model(mode: str, network: Any, data: dict[str, Any]) -> Any:
    features: list[Any] = []
    last = network.neck if getattr(network, 'with_neck', False) else network.backbone
    hook = last.register_forward_hook(lambda module, args, output: features.append(output))
    try:
        outputs = network(data['inputs'], data.get('data_samples'), mode=mode)
    finally:
        hook.remove()
    heads: Any = getattr(network, 'auxiliary_head', None) or []
    heads = [*(heads if isinstance(heads, nn.ModuleList) else [heads] if heads else [])]
    heads += [network.rpn_head] if hasattr(network, 'rpn_head') else []
    return features, outputs, [head(features[0]) for head in heads]

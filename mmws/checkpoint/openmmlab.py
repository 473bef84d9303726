"""Checkpoints of the toolkits themselves: mmdet's, mmseg's and mmpretrain's GN+WS models, open-mmlab's ``jhu/*``."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from mmws.checkpoint.authors_imagenet import from_torchvision, resnet_shapes
from mmws.checkpoint.format import Format, LeftOver, Shapes
from mmws.errors import WSError

__all__ = ['TOOLKIT', 'TOOLKIT_BACKBONE']


def _is_model(keys: Collection[str]) -> bool:
    return any(key.startswith('backbone.') for key in keys) and any('.gn' in key for key in keys)


def _is_backbone(keys: Collection[str]) -> bool:
    return {'conv1.weight', 'gn1.weight', 'layer1.0.gn3.weight'} <= set(keys)


def _own_shapes(tensors: Mapping[str, Tensor]) -> tuple[str, Shapes]:
    """Shapes as they are, for heads are of many kinds, and those of the backbone where it is one of the authors'."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        network, known = resnet_shapes(tensors, 'backbone.')
    except WSError:
        return 'a network whose shapes are not known here; loading it will check them', shapes
    return f'a model on {network}', shapes | known


def _keep(key: str) -> str | LeftOver | None:
    return key


TOOLKIT = Format("the toolkits' own", _is_model, _keep, _own_shapes)
TOOLKIT_BACKBONE = Format("open-mmlab's jhu weights", _is_backbone, from_torchvision, resnet_shapes)

"""Formats of the toolkits: GN+WS models of mmdet, mmseg and mmpretrain, and open-mmlab's ``jhu/*`` backbones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmws.checkpoint.authors_imagenet import from_torchvision, resnet_shapes
from mmws.checkpoint.format import Format, Shapes
from mmws.errors import WSError

__all__ = ['TOOLKIT', 'TOOLKIT_BACKBONE']


def _model_shapes(tensors: Mapping[str, Tensor]) -> tuple[str, Shapes]:
    """Return the shapes as found, because heads differ; for a backbone of the authors, return the expected shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        network, known = resnet_shapes(tensors, 'backbone.')
    except WSError:
        return 'an unknown network (shapes not checked)', shapes
    return f'a model on {network}', {**shapes, **known}


TOOLKIT = Format("a toolkit's model", ('backbone.*', '*.gn*'), str, _model_shapes)
TOOLKIT_BACKBONE = Format("open-mmlab's jhu weights", ('conv1.weight', 'gn1.weight', 'layer1.0.gn3.weight'),
                          from_torchvision, resnet_shapes)

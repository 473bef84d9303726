"""Format of the authors' ImageNet networks: torchvision's names, with GroupNorm under the names of BatchNorm."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmws.checkpoint.format import Format, LeftOver, Shapes, conv_norm_shapes
from mmws.errors import WSError

__all__ = ['AUTHORS_IMAGENET', 'CLASSIFIER', 'from_torchvision', 'resnet_shapes']

CLASSIFIER = LeftOver('the classifier, which a backbone does not have')
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def from_torchvision(key: str) -> str | LeftOver:
    """Return the toolkit's name for a name of torchvision.

    Example:
        >>> from_torchvision('layer1.0.bn2.weight')
        'layer1.0.gn2.weight'
    """
    if re.fullmatch(r'(fc|head\.fc)\.(weight|bias)', key):
        return CLASSIFIER
    return re.sub(r'(^|\.)bn(\d)\.', r'\1gn\2.', key)


def resnet_shapes(tensors: Mapping[str, Tensor], prefix: str = '') -> tuple[str, Shapes]:
    """Return the name of the authors' network that ``tensors`` belong to, and its shapes by the toolkit's names.

    Raises:
        WSError: if the blocks are not those of one of the authors' networks.
    """
    found = {block[0] for key in tensors if (block := re.match(rf'{prefix}layer([1-4])\.\d+\.', key))}
    stages = tuple(sum(f'layer{stage}.' in block for block in found) for stage in range(1, 5))
    depth = 101 if stages[2] > 6 else 50
    first = tensors.get(f'{prefix}layer1.0.conv2.weight')
    if stages != BLOCKS[depth] or first is None or first.dim() != 4:
        raise WSError(f'expected the bottleneck blocks (3, 4, 6, 3) or (3, 4, 23, 3) of depth 50 or 101, got {stages}')
    groups = 32 if first.shape[0] == 128 else 1
    name = f'resnext{depth}_32x4d' if groups == 32 else f'resnet{depth}'
    return name, {f'{prefix}{key}': shape for key, shape in _bottleneck_shapes(depth, groups).items()}


def _bottleneck_shapes(depth: int, groups: int) -> Shapes:
    shapes = conv_norm_shapes('conv1', 'gn1', (64, 3, 7, 7))
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        out = 256 * 2**stage
        width = out // 2 if groups > 1 else out // 4
        for block in range(blocks):
            at = f'layer{stage + 1}.{block}.'
            shapes.update(conv_norm_shapes(f'{at}conv1', f'{at}gn1', (width, channels, 1, 1)))
            shapes.update(conv_norm_shapes(f'{at}conv2', f'{at}gn2', (width, width // groups, 3, 3)))
            shapes.update(conv_norm_shapes(f'{at}conv3', f'{at}gn3', (out, width, 1, 1)))
            if block == 0:
                shapes.update(conv_norm_shapes(f'{at}downsample.0', f'{at}downsample.1', (out, channels, 1, 1)))
            channels = out
    return shapes


AUTHORS_IMAGENET = Format("the authors' ImageNet weights", ('conv1.weight', 'bn1.weight', 'layer1.0.bn3.weight'),
                          from_torchvision, resnet_shapes)

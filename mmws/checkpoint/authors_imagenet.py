"""The authors' ImageNet networks: names of torchvision, GroupNorm under the names of BatchNorm."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from mmws.checkpoint.format import Format, LeftOver, Shapes
from mmws.errors import WSError

__all__ = ['AUTHORS_IMAGENET', 'CLASSIFIER', 'from_torchvision', 'resnet_shapes']

CLASSIFIER = LeftOver('the classifier, which a backbone has not')
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def from_torchvision(key: str) -> str | LeftOver | None:
    """Return the toolkit's name for one of torchvision's.

    Example:
        >>> from_torchvision('layer1.0.bn2.weight')
        'layer1.0.gn2.weight'
    """
    if re.fullmatch(r'(fc|head\.fc)\.(weight|bias)', key):
        return CLASSIFIER
    return re.sub(r'(^|\.)bn(\d)\.', r'\1gn\2.', key)


def resnet_shapes(tensors: Mapping[str, Tensor], prefix: str = '') -> tuple[str, Shapes]:
    """Return which of the authors' networks ``tensors`` are of, and the shapes it has, by the toolkit's names.

    Raises:
        WSError: if it is none of them.
    """
    found = {block[0] for key in tensors if (block := re.match(rf'{prefix}layer([1-4])\.\d+\.', key))}
    stages = tuple(sum(f'layer{stage}.' in block for block in found) for stage in range(1, 5))
    depth = 101 if stages[2] > 6 else 50
    first = tensors.get(f'{prefix}layer1.0.conv2.weight')
    if stages != BLOCKS[depth] or first is None or first.dim() != 4:
        raise WSError(f'expected the blocks (3, 4, 6, 3) of depth 50 or (3, 4, 23, 3) of depth 101, with bottlenecks; '
                      f'got {stages}')
    groups = 32 if first.shape[0] == 128 else 1
    name = f'resnext{depth}_32x4d' if groups == 32 else f'resnet{depth}'
    return name, {f'{prefix}{key}': shape for key, shape in _shapes(depth, groups).items()}


def _shapes(depth: int, groups: int) -> Shapes:
    shapes: Shapes = {'conv1.weight': (64, 3, 7, 7), 'gn1.weight': (64,), 'gn1.bias': (64,)}
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        out = 256 * 2**stage
        width = out // 2 if groups > 1 else out // 4
        for block in range(blocks):
            at = f'layer{stage + 1}.{block}'
            convs = {'conv1': (width, channels, 1, 1), 'conv2': (width, width // groups, 3, 3),
                     'conv3': (out, width, 1, 1)}
            convs |= {'downsample.0': (out, channels, 1, 1)} if block == 0 else {}
            for conv, shape in convs.items():
                norm = 'downsample.1' if conv == 'downsample.0' else conv.replace('conv', 'gn')
                shapes |= {f'{at}.{conv}.weight': shape}
                shapes |= {f'{at}.{norm}.{part}': shape[:1] for part in ('weight', 'bias')}
            channels = out
    return shapes


def _matches(keys: Collection[str]) -> bool:
    return {'conv1.weight', 'bn1.weight', 'layer1.0.bn3.weight'} <= set(keys) and 'aspp.aspp1.weight' not in keys


AUTHORS_IMAGENET = Format("the authors' ImageNet weights", _matches, from_torchvision, resnet_shapes)

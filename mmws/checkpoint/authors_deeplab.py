"""Format of the authors' DeepLabv3 (chenxi116/DeepLabv3.pytorch), for ``deeplabv3_r101_gnws_voc12aug_jhu.py``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmws.checkpoint.authors_imagenet import from_torchvision, resnet_shapes
from mmws.checkpoint.format import Format, LeftOver, Shapes, conv_norm_shapes

__all__ = ['AUTHORS_DEEPLAB', 'from_authors_deeplab']

# Input order of the fusion convolution, in the authors' head and in mmws.DeepLabV3Head.
BRANCHES = ('aspp_modules.0', 'aspp_modules.1', 'aspp_modules.2', 'aspp_modules.3', 'image_pool.1')
HEAD = {'conv2': 'bottleneck.conv', 'bn2': 'bottleneck.gn', 'conv3': 'conv_seg',
        **{f'aspp{i}': f'{branch}.conv' for i, branch in enumerate(BRANCHES, 1)},
        **{f'aspp{i}_bn': f'{branch}.gn' for i, branch in enumerate(BRANCHES, 1)}}


def from_authors_deeplab(key: str) -> str | LeftOver:
    """Return mmseg's name for a name of chenxi116/DeepLabv3.pytorch.

    Example:
        >>> from_authors_deeplab('aspp.aspp5_bn.weight'), from_authors_deeplab('layer1.0.bn1.weight')
        ('decode_head.image_pool.1.gn.weight', 'backbone.layer1.0.gn1.weight')
    """
    head = re.fullmatch(r'aspp\.(\w+)\.(weight|bias)', key)
    if head:
        return f'decode_head.{HEAD.get(head[1], head[1])}.{head[2]}'
    name = from_torchvision(key)
    return name if isinstance(name, LeftOver) else f'backbone.{name}'


def _shapes(tensors: Mapping[str, Tensor]) -> tuple[str, Shapes]:
    network, shapes = resnet_shapes(tensors, 'backbone.')
    classes = tensors['decode_head.conv_seg.bias'].numel() if 'decode_head.conv_seg.bias' in tensors else 21
    convs = {**dict.fromkeys(BRANCHES, (256, 2048, 3, 3)), 'bottleneck': (256, 1280, 1, 1),
             **dict.fromkeys((BRANCHES[0], BRANCHES[4]), (256, 2048, 1, 1))}
    for name, shape in convs.items():
        shapes.update(conv_norm_shapes(f'decode_head.{name}.conv', f'decode_head.{name}.gn', shape))
    shapes.update({'decode_head.conv_seg.weight': (classes, 256, 1, 1), 'decode_head.conv_seg.bias': (classes,)})
    return f'DeepLabv3 {network}', shapes


AUTHORS_DEEPLAB = Format("the authors' DeepLabv3", ('aspp.aspp1.weight', 'aspp.aspp5_bn.weight', 'conv1.weight'),
                         from_authors_deeplab, _shapes)

"""The authors' DeepLabv3, for ``configs/deeplabv3_r101_gnws_voc12aug_jhu.py``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from mmws.checkpoint.authors_imagenet import from_torchvision, resnet_shapes
from mmws.checkpoint.format import Format, LeftOver, Shapes

__all__ = ['AUTHORS_DEEPLAB', 'from_authors_deeplab']

# The fusion convolution takes the branches in this order, in theirs as in mmws.DeepLabV3Head: the image pool last.
BRANCHES = ('aspp_modules.0', 'aspp_modules.1', 'aspp_modules.2', 'aspp_modules.3', 'image_pool.1')
FUSION = {'conv2': 'bottleneck.conv', 'bn2': 'bottleneck.gn', 'conv3': 'conv_seg'}
HEAD = {f'aspp{i}': f'{branch}.conv' for i, branch in enumerate(BRANCHES, 1)} | {
    f'aspp{i}_bn': f'{branch}.gn' for i, branch in enumerate(BRANCHES, 1)} | FUSION


def from_authors_deeplab(key: str) -> str | LeftOver | None:
    """Return mmseg's name for one of chenxi116/DeepLabv3.pytorch's.

    Example:
        >>> from_authors_deeplab('aspp.aspp5_bn.weight'), from_authors_deeplab('layer1.0.bn1.weight')
        ('decode_head.image_pool.1.gn.weight', 'backbone.layer1.0.gn1.weight')
    """
    head = re.fullmatch(r'aspp\.(\w+)\.(weight|bias)', key)
    if head:
        return f'decode_head.{HEAD[head[1]]}.{head[2]}' if head[1] in HEAD else None
    name = from_torchvision(key)
    return name if name is None or isinstance(name, LeftOver) else f'backbone.{name}'


def _shapes(tensors: Mapping[str, Tensor]) -> tuple[str, Shapes]:
    network, shapes = resnet_shapes(tensors, 'backbone.')
    classes = tensors['decode_head.conv_seg.bias'].numel() if 'decode_head.conv_seg.bias' in tensors else 21
    convs = dict.fromkeys(BRANCHES, (256, 2048, 3, 3))
    convs |= dict.fromkeys((BRANCHES[0], BRANCHES[4]), (256, 2048, 1, 1)) | {'bottleneck': (256, 1280, 1, 1)}
    for name, shape in convs.items():
        shapes |= {f'decode_head.{name}.conv.weight': shape, f'decode_head.{name}.gn.weight': (256,),
                   f'decode_head.{name}.gn.bias': (256,)}
    shapes |= {'decode_head.conv_seg.weight': (classes, 256, 1, 1), 'decode_head.conv_seg.bias': (classes,)}
    return f'DeepLabv3 {network}', shapes


def _matches(keys: Collection[str]) -> bool:
    return {'aspp.aspp1.weight', 'aspp.aspp5_bn.weight', 'conv1.weight'} <= set(keys)


AUTHORS_DEEPLAB = Format("the authors' DeepLabv3", _matches, from_authors_deeplab, _shapes)

"""maskrcnn-benchmark's pickles: Caffe2's names, images in BGR with a std of 1."""

from __future__ import annotations

import re
from collections.abc import Collection

from mmws.checkpoint.authors_imagenet import CLASSIFIER, resnet_shapes
from mmws.checkpoint.format import BGR_CAFFE, Format, LeftOver

__all__ = ['CAFFE2', 'from_caffe2']

PARTS = {'w': 'weight', 'gn_s': 'weight', 'gn_b': 'bias'}
BRANCHES = {'1': ('downsample.0', 'downsample.1'), '2a': ('conv1', 'gn1'), '2b': ('conv2', 'gn2'),
            '2c': ('conv3', 'gn3')}


def from_caffe2(key: str) -> str | LeftOver | None:
    """Return the toolkit's name for one of Caffe2's.

    Example:
        >>> from_caffe2('res2_0_branch2a_gn_s'), from_caffe2('res5_2_branch2c_w'), from_caffe2('conv1_gn_b')
        ('layer1.0.gn1.weight', 'layer4.2.conv3.weight', 'gn1.bias')
    """
    if re.fullmatch(r'(pred|fc1000)_[wb]', key):
        return CLASSIFIER
    if key.endswith('_momentum') or key in ('lr', 'model_iter'):
        return LeftOver('state of the optimizer')
    stem = re.fullmatch(r'(?:res_)?conv1_(w|gn_[sb])', key)
    if stem:
        return f'{"conv1" if stem[1] == "w" else "gn1"}.{PARTS[stem[1]]}'
    block = re.fullmatch(r'res([2-5])_(\d+)_branch(1|2a|2b|2c)_(w|gn_[sb])', key)
    if block is None:
        return None
    return f'layer{int(block[1]) - 1}.{block[2]}.{BRANCHES[block[3]][block[4] != "w"]}.{PARTS[block[4]]}'


def _matches(keys: Collection[str]) -> bool:
    return 'res2_0_branch2a_w' in keys and 'res2_0_branch2a_gn_s' in keys


CAFFE2 = Format("maskrcnn-benchmark's Caffe2 weights", _matches, from_caffe2, resnet_shapes, BGR_CAFFE)

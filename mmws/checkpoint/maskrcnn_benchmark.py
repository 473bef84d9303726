"""Format of maskrcnn-benchmark's pickles: Caffe2's names, images in BGR with a std of 1."""

from __future__ import annotations

import re

from mmws.checkpoint.authors_imagenet import CLASSIFIER, resnet_shapes
from mmws.checkpoint.format import BGR_CAFFE, Format, LeftOver

__all__ = ['CAFFE2', 'from_caffe2']

PARTS = {'w': 'weight', 'gn_s': 'weight', 'gn_b': 'bias'}
LAYERS = {'conv1': ('conv1', 'gn1'), 'branch1': ('downsample.0', 'downsample.1'), 'branch2a': ('conv1', 'gn1'),
          'branch2b': ('conv2', 'gn2'), 'branch2c': ('conv3', 'gn3')}


def from_caffe2(key: str) -> str | LeftOver:
    """Return the toolkit's name for a name of Caffe2.

    Example:
        >>> from_caffe2('res2_0_branch2a_gn_s'), from_caffe2('res5_2_branch2c_w'), from_caffe2('conv1_gn_b')
        ('layer1.0.gn1.weight', 'layer4.2.conv3.weight', 'gn1.bias')
    """
    if re.fullmatch(r'(pred|fc1000)_[wb]', key):
        return CLASSIFIER
    if key.endswith('_momentum') or key in ('lr', 'model_iter'):
        return LeftOver('state of the optimizer')
    match = re.fullmatch(r'(?:(?:res_)?(conv1)|res([2-5])_(\d+)_(branch(?:1|2a|2b|2c)))_(w|gn_[sb])', key)
    if match is None:
        return key
    stem, stage, block, branch, part = match.groups()
    place = '' if stem else f'layer{int(stage) - 1}.{block}.'
    return f'{place}{LAYERS[stem or branch][part != "w"]}.{PARTS[part]}'


CAFFE2 = Format("maskrcnn-benchmark's Caffe2 weights", ('res2_0_branch2a_w', 'res2_0_branch2a_gn_s'), from_caffe2,
                resnet_shapes, BGR_CAFFE)

"""Parity with the authors' DeepLabv3, which tests/helpers/authors.py implements from its description."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmws import ConvWS2d
from tests.helpers.authors import Authors
from tests.helpers.commands import REPOSITORY

CONFIG = REPOSITORY / 'configs' / 'deeplabv3_r101_gnws_voc12aug_jhu.py'


@pytest.fixture(scope='module')
def net() -> nn.Module:
    config = Config.fromfile(CONFIG)
    config.model.pretrained = None
    config.model.data_preprocessor._scope_ = 'mmseg'
    from mmengine.registry import DefaultScope
    with DefaultScope.overwrite_default_scope('mmseg'):
        net = MODELS.build(config.model)
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize('size', [(65, 97), (113, 71)])
def test_logits_equal_the_authors(net, size):
    image = torch.randn(1, 3, *size)
    actual = net.encode_decode(image, [{'img_shape': size}])
    expected = Authors(net.state_dict()).logits(image)
    assert actual.shape == expected.shape == (1, 21, *size)
    assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_the_authors_network_uses_every_tensor(net):
    class Reading(dict):
        read: ClassVar[set[str]] = set()

        def __getitem__(self, name):
            self.read.add(name)
            return super().__getitem__(name)

    weights = Reading(net.state_dict())
    Authors(weights).logits(torch.randn(1, 3, 33, 33))
    assert weights.read == set(weights)


def test_the_prefix_converts_the_head_alone(in_scope):
    with in_scope('mmseg'):
        head = MODELS.build({'type': 'mmws.DeepLabV3Head', 'in_channels': 8, 'channels': 8, 'num_classes': 3,
                             'norm_cfg': {'type': 'BN'}})
    assert type(head.bottleneck.conv) is ConvWS2d
    assert type(head.conv_seg) is nn.Conv2d
    assert head.bottleneck.conv.kernel_size == (1, 1)

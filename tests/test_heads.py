"""The authors' DeepLabv3, written out from its description and run on the same weights."""

from typing import ClassVar

import pytest
import torch
from conftest import REPOSITORY
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mmws import ConvWS2d

CONFIG = REPOSITORY / 'configs' / 'deeplabv3_r101_gnws_voc12aug_jhu.py'


class Authors:
    """chenxi116/DeepLabv3.pytorch as a function of a state dict with mm's names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def conv(self, x, name, stride=1, dilation=1):
        weight = self.weights[f'{name}.weight']
        rows = weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-5)
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, rows.view_as(weight), None, stride, padding, dilation)

    def norm(self, x, name):
        return F.group_norm(x, 32, self.weights[f'{name}.weight'], self.weights[f'{name}.bias'], 1e-5)

    def block(self, x, name, stride, dilation, shortcut):
        out = F.relu(self.norm(self.conv(x, f'{name}.conv1'), f'{name}.gn1'))
        out = F.relu(self.norm(self.conv(out, f'{name}.conv2', stride, dilation), f'{name}.gn2'))
        out = self.norm(self.conv(out, f'{name}.conv3'), f'{name}.gn3')
        if shortcut:
            x = self.norm(self.conv(x, f'{name}.downsample.0', stride), f'{name}.downsample.1')
        return F.relu(out + x)

    def backbone(self, x):
        x = F.relu(self.norm(self.conv(x, 'backbone.conv1', 2), 'backbone.gn1'))
        x = F.max_pool2d(x, 3, 2, 1)
        for layer, (blocks, stride) in enumerate([(3, 1), (4, 2), (23, 2), (3, 1)], 1):
            for i in range(blocks):
                dilation = 2 if layer == 4 and i > 0 else 1
                x = self.block(x, f'backbone.layer{layer}.{i}', stride if i == 0 else 1, dilation, i == 0)
        return x

    def branch(self, x, name, dilation=1):
        return F.relu(self.norm(self.conv(x, f'decode_head.{name}.conv', 1, dilation), f'decode_head.{name}.gn'))

    def logits(self, image):
        x = self.backbone(image)
        branches = [self.branch(x, f'aspp_modules.{i}', rate) for i, rate in enumerate((1, 6, 12, 18))]
        pooled = self.branch(x.mean((2, 3), keepdim=True), 'image_pool.1')
        branches.append(F.interpolate(pooled, x.shape[2:], mode='bilinear', align_corners=True))
        x = self.branch(torch.cat(branches, 1), 'bottleneck')
        x = F.conv2d(x, self.weights['decode_head.conv_seg.weight'], self.weights['decode_head.conv_seg.bias'])
        return F.interpolate(x, image.shape[2:], mode='bilinear', align_corners=True)


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
def test_logits_are_the_authors(net, size):
    image = torch.randn(1, 3, *size)
    ours = net.encode_decode(image, [{'img_shape': size}])
    theirs = Authors(net.state_dict()).logits(image)
    assert ours.shape == theirs.shape == (1, 21, *size)
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_every_tensor_is_one_of_the_authors(net):
    class Reading(dict):
        read: ClassVar[set[str]] = set()

        def __getitem__(self, name):
            self.read.add(name)
            return super().__getitem__(name)

    weights = Reading(net.state_dict())
    Authors(weights).logits(torch.randn(1, 3, 33, 33))
    assert weights.read == set(weights)


def test_the_prefix_converts_it_alone_too(in_scope):
    with in_scope('mmseg'):
        head = MODELS.build({'type': 'mmws.DeepLabV3Head', 'in_channels': 8, 'channels': 8, 'num_classes': 3,
                             'norm_cfg': {'type': 'BN'}})
    assert type(head.bottleneck.conv) is ConvWS2d
    assert type(head.conv_seg) is nn.Conv2d
    assert head.bottleneck.conv.kernel_size == (1, 1)

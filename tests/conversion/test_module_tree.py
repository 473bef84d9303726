from __future__ import annotations

from itertools import permutations

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mmws.conversion.decision import LAYER_NORM_REASON
from mmws.conversion.module_tree import decide_from_tree


def followed_by_norms(model: nn.Module) -> list[str]:
    """Return the names of the convolutions that only norms follow."""
    decisions = decide_from_tree(model)
    return [name for name, module in model.named_modules() if module in decisions and not decisions[module].reason]


def followed_by_norm_in_a_run(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Return the same from a run: the output tensor of the convolution is the input of a norm."""
    outputs, inputs = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, args, out, name=name: outputs.update({name: out}))
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(x)
    return [name for name, out in outputs.items() if any(out is tensor for tensor in inputs)]


@pytest.mark.parametrize('act_cfg', [None, {'type': 'ReLU', 'inplace': False}])
@pytest.mark.parametrize('norm_cfg', [None, {'type': 'BN'}])
@pytest.mark.parametrize('order', permutations(('conv', 'norm', 'act')))
def test_conv_modules_in_every_order_alone_and_in_a_sequence(order, norm_cfg, act_cfg):
    def block():
        return ConvModule(4, 4, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg, order=order, inplace=False)

    x = torch.randn(2, 4, 8, 8)
    for model in (block(), nn.Sequential(block(), block()), nn.Sequential(nn.Sequential(block()), block())):
        found = followed_by_norms(model)
        assert found == followed_by_norm_in_a_run(model, x)


def test_a_conv_with_an_activation_before_the_norm_stays_plain():
    assert followed_by_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))) == []
    assert followed_by_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())) == ['0']


@pytest.mark.parametrize('norm', [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.SyncBatchNorm(4)])
def test_norms_over_space_count(norm):
    assert followed_by_norms(nn.Sequential(nn.Conv2d(3, 4, 1), norm)) == ['0']


def test_layer_norm_does_not_count():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 8, 8]))
    assert followed_by_norms(net) == []
    assert decide_from_tree(net)[net[0]].reason == LAYER_NORM_REASON


def test_blocks_that_register_each_norm_after_its_conv():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
            self.alias = self.conv1
            self.out = nn.Conv2d(8, 2, 1)
            self.head_bn = nn.BatchNorm2d(4)

    net = Block()
    assert followed_by_norms(net) == ['conv1', 'conv2']
    assert decide_from_tree(net)[net.out].reason == 'the next norm has 4 channels, the convolution 2'


def test_a_norm_must_follow_a_shared_conv_at_each_place():
    conv = nn.Conv2d(4, 4, 1)
    norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    levels = nn.ModuleList(nn.Sequential(conv, norm) for norm in norms)
    assert decide_from_tree(levels)[conv].norms == list(norms)
    levels.append(nn.Sequential(conv, nn.ReLU()))
    assert decide_from_tree(levels)[conv].reason == 'no norm follows: ReLU'

from itertools import permutations

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mmws.conversion.module_tree import LAYER_NORM, read_tree


def fed(model: nn.Module) -> list[str]:
    """Names of the convolutions whose output norms alone take."""
    placement = read_tree(model)
    return [name for name, module in model.named_modules() if module in placement and not placement[module].reason]


def followed_by_norm(model: nn.Module, x: torch.Tensor) -> list[str]:
    """The same, by running the model: whose output tensor is the input of a norm."""
    outputs, inputs = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, args, out, name=name: outputs.update({name: out}))
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(x)
    return [name for name, out in outputs.items() if any(out is taken for taken in inputs)]


@pytest.mark.parametrize('act_cfg', [None, {'type': 'ReLU', 'inplace': False}])
@pytest.mark.parametrize('norm_cfg', [None, {'type': 'BN'}])
@pytest.mark.parametrize('order', permutations(('conv', 'norm', 'act')))
def test_conv_modules_in_every_order_alone_and_in_a_row(order, norm_cfg, act_cfg):
    def block():
        return ConvModule(4, 4, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg, order=order, inplace=False)

    x = torch.randn(2, 4, 8, 8)
    for model in (block(), nn.Sequential(block(), block()), nn.Sequential(nn.Sequential(block()), block())):
        found = fed(model)
        assert found == followed_by_norm(model, x)


def test_an_activation_between_keeps_the_conv_plain():
    assert fed(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))) == []
    assert fed(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())) == ['0']


@pytest.mark.parametrize('norm', [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.SyncBatchNorm(4)])
def test_every_norm_over_space_counts(norm):
    assert fed(nn.Sequential(nn.Conv2d(3, 4, 1), norm)) == ['0']


def test_layer_norm_does_not_count():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 8, 8]))
    assert fed(net) == []
    assert read_tree(net)[net[0]].reason == LAYER_NORM


def test_blocks_that_register_conv_and_norm_in_turn():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
            self.alias = self.conv1
            self.out = nn.Conv2d(8, 2, 1)
            self.head_bn = nn.BatchNorm2d(4)

    net = Block()
    assert fed(net) == ['conv1', 'conv2']
    assert read_tree(net)[net.out].reason == 'the norm that follows has 4 channels, not its 2'


def test_a_shared_conv_feeds_norms_only_if_it_does_so_everywhere():
    conv = nn.Conv2d(4, 4, 1)
    norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    levels = nn.ModuleList(nn.Sequential(conv, norm) for norm in norms)
    assert read_tree(levels)[conv].norms == list(norms)
    levels.append(nn.Sequential(conv, nn.ReLU()))
    assert read_tree(levels)[conv].reason == 'no norm takes its output: ReLU follows'

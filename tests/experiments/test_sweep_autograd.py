"""The consumers of convolutions in the autograd graph, which the sweep compares with the placement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmws.conversion.output_recorder import OutputRecorder
from mmws.experiments.sweep_autograd import UNSEEN, AutogradConsumers
from tests.helpers.versions import needs_torch


@torch.jit.script
def scripted_relu(x):
    """Run in C++: no torch function that Python sees."""
    return torch.relu(x)


class Net(nn.Module):
    """A convolution, a norm, and a function that uses both."""

    def __init__(self, use, norm=None):
        super().__init__()
        self.conv, self.norm, self.use = nn.Conv2d(3, 4, 1), norm or nn.GroupNorm(2, 4), use

    def forward(self, x):
        return self.use(self.conv, self.norm, x)


@pytest.mark.parametrize(('use', 'consumers'), [
    (lambda conv, norm, x: norm(conv(x)), ['group_norm']),
    (lambda conv, norm, x: norm(conv(x).clone()).relu(), ['group_norm']),
    (lambda conv, norm, x: norm(conv(x).double().float()).relu(), ['group_norm']),
    (lambda conv, norm, x: norm(conv(x)) + norm(conv(x)), ['group_norm']),
    (lambda conv, norm, x: conv(x), ['the output leaves the network']),
    (lambda conv, norm, x: [norm(conv(x)), conv(x).clone()], ['the output leaves the network', 'group_norm']),
    (lambda conv, norm, x: norm(conv(x) + 1), ['AddBackward0']),
    (lambda conv, norm, x: norm(conv(x).flatten(2)), ['ViewBackward0']),
    (lambda conv, norm, x: norm(conv(x).relu_()), ['ReluBackward0']),
    (lambda conv, norm, x: nn.functional.group_norm(x[:, :1].expand(-1, 4, -1, -1), 2, conv(x).mean((0, 2, 3))),
     ['MeanBackward1']),
])
def test_consumers_of_a_convolution(use, consumers):
    net = Net(use)
    with AutogradConsumers(net) as graph:
        graph.add(net(torch.randn(2, 3, 4, 4)))
    assert graph.consumers == {net.conv: consumers}
    assert not net.conv._forward_hooks


@pytest.mark.parametrize('norm', [
    nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True),
    pytest.param(nn.SyncBatchNorm(4), marks=needs_torch('2.6', 'SyncBatchNorm on the CPU'))])
def test_other_norms_count(norm):
    net = Net(lambda conv, norm, x: norm(conv(x)), norm)
    with AutogradConsumers(net) as graph:
        graph.add(net(torch.randn(2, 3, 4, 4)))
    assert graph.consumers == {net.conv: ['group_norm']}


@pytest.mark.parametrize(('norm', 'use', 'consumers'), [
    (nn.BatchNorm2d(4).eval(), lambda conv, norm, x: norm(conv(x)), ['NativeBatchNormBackward0']),
    (nn.BatchNorm1d(64), lambda conv, norm, x: norm(conv(x).flatten(1)), ['ViewBackward0'])])
def test_fixed_statistics_and_other_channels_are_no_norm(norm, use, consumers):
    net = Net(use, norm)
    with AutogradConsumers(net) as graph:
        output = net(torch.randn(2, 3, 4, 4))
        graph.add(output)
    assert graph.consumers == {net.conv: consumers}


def test_a_convolution_with_several_outputs():
    class Pair(nn.Conv2d):
        def forward(self, x):
            return [super(Pair, self).forward(part) for part in x]

    conv, norm = Pair(3, 4, 1), nn.GroupNorm(2, 4)
    with AutogradConsumers(conv) as graph:
        graph.add([norm(part).sum() for part in conv([torch.randn(1, 3, 2, 2)] * 2)])
    assert graph.consumers == {conv: ['group_norm']}


def test_a_convolution_that_gets_a_gradient_is_always_named():
    class Hidden(nn.Conv2d):
        def forward(self, x):
            return {1}, super().forward(x).relu

    conv = Hidden(3, 4, 1)
    with AutogradConsumers(conv) as graph:
        graph.add(conv(torch.randn(1, 3, 2, 2))[1]())
    assert graph.consumers == {conv: [UNSEEN]}


def test_a_layer_norm_is_no_such_norm():
    net = Net(lambda conv, norm, x: norm(conv(x)), nn.LayerNorm(4))
    with AutogradConsumers(net) as graph:
        graph.add(net(torch.randn(2, 3, 4, 4)))
    assert graph.consumers == {net.conv: ['NativeLayerNormBackward0']}


def test_a_use_in_cpp_that_the_recorder_of_the_conversion_does_not_see():
    def use(conv, norm, x):
        y = conv(x)
        return norm(y) + scripted_relu(y)

    net = Net(use)
    with OutputRecorder(net) as recorder, AutogradConsumers(net) as graph:
        graph.add(net(torch.randn(2, 3, 4, 4)))
    assert recorder.consumers == {net.conv: [net.norm]}
    assert sorted(graph.consumers[net.conv]) == ['ReluBackward0', 'group_norm']


def test_outputs_without_gradients_have_no_consumers():
    net = Net(lambda conv, norm, x: conv(x))
    with AutogradConsumers(net) as graph, torch.no_grad():
        graph.add({'loss': net(torch.randn(2, 3, 4, 4)), 'none': None})
    assert graph.consumers == {}

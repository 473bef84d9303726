"""The record of a forward pass that fails, wholly or inside."""

from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mmws import convert_
from mmws.conversion.output_recorder import OutputRecorder


class Catches(nn.Module):
    """A network that goes on after a layer fails."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.conv, self.norm = layer, nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        try:
            self.layer(x[:, :1])
        except RuntimeError:
            x = x + 0
        return self.norm(self.conv(x)).relu()


class FailingNorm(nn.GroupNorm):
    def forward(self, x):
        raise RuntimeError


def test_a_failed_pass_leaves_no_record():
    net = Catches(FailingNorm(1, 1))
    with OutputRecorder(net) as recorder:
        with pytest.raises(RuntimeError, match='caught'), recorder.attempt():
            net(torch.zeros(1, 3, 4, 4))
        assert not recorder.consumers
        net.layer = nn.Identity()
        with recorder.attempt():
            net(torch.zeros(1, 3, 4, 4))
    assert recorder.consumers == {net.conv: [net.norm]}


def test_a_network_that_catches_the_error_of_a_layer_is_converted():
    net = Catches(nn.Conv2d(3, 8, 1))  # gets one channel
    assert convert_(net).converted == ['conv']


class CatchesItsConv(nn.Module):
    """A convolution before a norm fails, and the network goes on without both."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        with suppress(RuntimeError):
            self.norm(self.conv(x[:, :2]))
        return self.conv(x).abs()


def test_a_network_that_catches_the_error_of_a_convolution_is_not_recorded():
    assert convert_(CatchesItsConv()).unseen == ['conv']


class Masked(nn.Conv2d):
    """Changes its output after the convolution, as SparK's SparseConv2d does."""

    def forward(self, x):
        return super().forward(x) * (x[:, :1] > 0)


def test_the_output_is_the_result_of_the_convolution_function():
    net = nn.Sequential(Masked(3, 8, 1), nn.BatchNorm2d(8))
    with OutputRecorder(net) as recorder:
        net(torch.randn(2, 3, 5, 5))
    assert recorder.consumers == {net[0]: ['mul']}


class Momentum(nn.Module):
    """A network that averages its own convolution in the forward pass, as self-supervised training does."""

    def __init__(self):
        super().__init__()
        self.query = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.key = AveragedModel(self.query)

    def forward(self, x):
        if x.numel() > 0:
            self.key.update_parameters(self.query)
        return self.query(x).mean() + self.key(x).mean()


def test_the_update_of_an_average_is_no_use_of_a_weight():
    net = Momentum()
    update = net.key.update_parameters
    report = convert_(net, inputs=torch.randn(1, 3, 4, 4))
    assert report.converted == ['query.0', 'key.module.0']
    assert net.key.update_parameters == update
    net(torch.randn(1, 3, 4, 4))
    assert torch.equal(net.key.module[0].weight, net.query[0].weight)
    with pytest.raises(RuntimeError, match='channels'), OutputRecorder(net):
        net(torch.randn(1, 4, 4, 4))
    assert net.key.update_parameters == update

"""Quantization-aware training: convert_, train, fold, then prepare. The other orders are named, never silent."""

import pytest
import torch
from torch import nn
from torch.ao import quantization as ao

from mmws import ConvWS2d, WSError, convert_, fold

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.dequant(self.last(self.norm(self.conv(self.quant(x))).relu()))


def converted() -> nn.Module:
    net = Net()
    convert_(net)
    return net.eval()


def prepare_eager(net: nn.Module) -> nn.Module:
    net.train().qconfig = ao.get_default_qat_qconfig('fbgemm')
    return ao.prepare_qat(net)


def prepare_fx(net: nn.Module) -> nn.Module:
    quantize_fx = pytest.importorskip('torch.ao.quantization.quantize_fx')
    mapping = ao.get_default_qat_qconfig_mapping('fbgemm')
    return quantize_fx.prepare_qat_fx(net.train(), mapping, (torch.randn(1, 3, 9, 9), ))


PREPARE = pytest.mark.parametrize('prepare', [prepare_eager, prepare_fx])


@PREPARE
def test_a_folded_network_is_prepared_and_trains(prepare):
    net, x = converted(), torch.randn(4, 3, 9, 9)
    expected = net(x)
    prepared = prepare(fold(net))
    fake_quantized = [module for module in prepared.modules() if hasattr(module, 'weight_fake_quant')]
    assert len(fake_quantized) == 2
    output = prepared(x)
    assert 0 < (output - expected).norm() < 0.05 * expected.norm()
    output.square().sum().backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in fake_quantized)


@PREPARE
def test_an_unfolded_network_says_fold_first(prepare):
    with pytest.warns(UserWarning, match=r'standardized layers: .* without fake quantization; fold first: model\.eval'):
        prepared = prepare(converted())
    assert any(isinstance(module, ConvWS2d) for module in prepared.modules())


@PREPARE
def test_a_prepared_network_cannot_be_converted(prepare):
    prepared = prepare(Net())
    with pytest.raises(WSError, match=r'is quantized or prepared for it, .* convert_, train, fold, then quantize'):
        convert_(prepared)

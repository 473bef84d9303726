import copy
import inspect
import pickle
from itertools import product

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmcv.cnn.bricks.conv_ws import ConvWS2d as MmcvConvWS2d
from mmengine.model import BaseModule
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmws import ConvTransposeWS2d, ConvWS1d, ConvWS2d, ConvWS3d, WSError, standardize_weight
from tests.helpers.pairs import pairs
from tests.helpers.versions import HALF, ONE_GRAPH, needs_torch

PAIRS = [(ConvWS1d, nn.Conv1d, 1), (ConvWS2d, nn.Conv2d, 2), (ConvWS3d, nn.Conv3d, 3)]
ARGUMENTS = [
    {}, {'stride': 2, 'padding': 1, 'bias': False}, {'dilation': 2, 'groups': 2}, {'padding': 'same'},
    {'padding': 1, 'padding_mode': 'circular'}, {'padding': 2, 'padding_mode': 'replicate'}, {'dtype': torch.float64},
]


@pytest.mark.parametrize('arguments', ARGUMENTS, ids=str)
@pytest.mark.parametrize(('standardized', 'plain', 'dims'), PAIRS)
def test_is_the_plain_conv_with_a_standardized_weight(standardized, plain, dims, arguments):
    conv, reference = standardized(4, 6, 3, **arguments), plain(4, 6, 3, **arguments)
    assert list(conv.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(conv.state_dict())
    reference.weight.data = standardize_weight(conv.weight.data)
    x = torch.randn(2, 4, *[7] * dims, dtype=arguments.get('dtype', torch.float32))
    assert torch.equal(conv(x), reference(x))


@pytest.mark.parametrize(('standardized', 'plain', 'dims'), PAIRS)
def test_takes_the_arguments_of_the_plain_conv_by_position_and_by_name(standardized, plain, dims):
    names = [name for name in inspect.signature(plain).parameters if name not in ('device', 'dtype')]
    values = [4, 6, 3, 2, 1, 1, 2, False, 'circular']
    by_position = standardized(*values, torch.device('cpu'), torch.float64)
    by_name = standardized(**dict(pairs(names, values)), device='cpu', dtype=torch.float64, eps=1e-3)
    assert by_position.padding_mode == by_name.padding_mode == 'circular'
    assert by_position.weight.dtype == by_name.weight.dtype == torch.float64
    assert (by_position.eps, by_name.eps) == (1e-5, 1e-3)


def test_outputs_equal_mmcv():
    conv, mmcv_conv = ConvWS2d(6, 8, 3, groups=2), MmcvConvWS2d(6, 8, 3, groups=2)
    mmcv_conv.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(conv(x), mmcv_conv(x), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize('layer', [ConvWS1d, ConvWS2d, ConvWS3d])
def test_fan_in_of_1_is_refused_at_construction(layer):
    with pytest.raises(ValueError, match='fan-in of at least 2, got 1'):
        layer(8, 8, 1, groups=8)


def test_copies_and_pickles_compute_the_same():
    conv = ConvWS2d(4, 6, 3, eps=1e-2)
    x = torch.randn(1, 4, 8, 8)
    for copied in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert type(copied) is ConvWS2d
        assert torch.equal(copied(x), conv(x))


def test_initializers_recognize_a_conv():
    class Net(BaseModule):
        def __init__(self):
            super().__init__(init_cfg={'type': 'Constant', 'val': 3.0, 'bias': 2.0, 'layer': 'Conv2d'})
            self.conv = ConvWS2d(4, 6, 3)

    net = Net()
    net.init_weights()
    assert (net.conv.weight == 3).all()
    assert (net.conv.bias == 2).all()
    nn.init.kaiming_normal_(net.conv.weight)
    assert net.conv.weight.std() > 0.1


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF])
def test_autocast_and_half_precision_train(dtype):
    conv, x = ConvWS2d(4, 6, 3), torch.randn(2, 4, 8, 8)
    with torch.autocast('cpu', dtype=dtype):
        out = conv(x)
    out.float().sum().backward()
    assert out.dtype == dtype
    assert conv.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), conv(x), rtol=0.05, atol=0.05)
    assert conv.to(dtype)(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF])
def test_autocast_outputs_and_gradients_equal_mmcv(dtype):
    conv, mmcv_conv, x = ConvWS2d(16, 32, 3), MmcvConvWS2d(16, 32, 3), torch.randn(2, 16, 12, 12)
    mmcv_conv.load_state_dict(conv.state_dict())
    with torch.autocast('cpu', dtype=dtype):
        outs = [layer(x) for layer in (conv, mmcv_conv)]
    upstream = torch.randn_like(outs[0])
    gradient, expected = (torch.autograd.grad(out, layer.weight, upstream)[0] for out, layer in zip(
        outs, (conv, mmcv_conv)))
    torch.testing.assert_close(outs[0], outs[1], rtol=0.016, atol=0.016)  # a weight may round differently by one unit
    assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max()


def test_channels_last_is_kept():
    conv = ConvWS2d(4, 6, 3).to(memory_format=torch.channels_last)
    out = conv(torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_compiles_in_one_graph():
    conv, x = ConvWS2d(4, 6, 3), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(torch.compile(conv, fullgraph=ONE_GRAPH, backend='aot_eager')(x), conv(x))


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIMILAR = {
    'bfloat16': lambda weight: weight.bfloat16(),
    'rounded to bfloat16': lambda weight: weight.bfloat16().to(weight.dtype),
    'EMA': lambda weight: 0.999 * weight + 0.001 * torch.randn_like(weight),
    'next checkpoint': lambda weight: weight + 1e-4 * torch.randn_like(weight),
    'weight decay': lambda weight: 0.99 * weight,
    'factor per filter and 4% noise': lambda weight: (
        weight * torch.rand(len(weight), 1, 1, 1) * torch.empty_like(weight).uniform_(0.96, 1.04)).to(weight.dtype),
    'negated': lambda weight: -weight,
    'same': lambda weight: weight.clone(),
}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('change', SIMILAR.values(), ids=SIMILAR)
@pytest.mark.parametrize('layer', [ConvWS2d, ConvTransposeWS2d])
def test_a_similar_weight_may_be_assigned(layer, change, dtype):
    conv = layer(4, 6, 3, groups=2, dtype=dtype)
    weight = change(conv.weight.detach())
    conv.weight = nn.Parameter(weight)
    assert torch.equal(conv.weight, weight)


@needs_torch('2.1', 'load_state_dict(assign=True)')
@pytest.mark.parametrize('layer', [ConvWS2d, ConvTransposeWS2d])
def test_a_similar_weight_may_be_loaded(layer):
    for change, dtype in product(SIMILAR.values(), DTYPES):
        conv = layer(4, 6, 3, groups=2, dtype=dtype)
        weight = change(conv.weight.detach())
        conv.load_state_dict({'weight': weight, 'bias': conv.bias}, assign=True)
        assert torch.equal(conv.weight, weight)


HALF_ROOT = pytest.param(torch.float16, marks=needs_torch('2.1', 'a square root of float16 on CPU'))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, HALF_ROOT])
@pytest.mark.parametrize(('layer', 'fuse'), [
    (ConvWS2d, fuse_conv_bn), (ConvWS2d, lambda net: fuse_conv_bn_eval(*net)),
    (ConvTransposeWS2d, lambda net: fuse_conv_bn_eval(*net, transpose=True))], ids=['mmcv', 'torch', 'transposed'])
def test_fusing_a_norm_is_refused(layer, fuse, dtype):
    net = nn.Sequential(layer(16, 32, 3), nn.BatchNorm2d(32)).eval()
    nn.init.normal_(net[1].weight)
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    nn.init.zeros_(net[1].weight[:2])
    nn.init.zeros_(net[0].filters()[3])
    weight = net.to(dtype)[0].weight
    with pytest.raises(WSError, match='cannot fuse a norm into this layer'):
        fuse(net)
    assert net[0].weight is weight


def test_a_norm_fused_into_a_single_filter_is_refused():
    net = nn.Sequential(ConvWS2d(16, 1, 3), nn.BatchNorm2d(1)).eval()
    nn.init.uniform_(net[1].running_var, 0.5, 0.9)
    with pytest.raises(WSError, match='cannot fuse a norm into this layer'):
        fuse_conv_bn(net)


def test_a_norm_fused_into_tiny_weights_is_refused():
    """Subnormal numbers of float16 have fewer digits."""
    conv = ConvWS2d(16, 32, 3).half()
    conv.weight = nn.Parameter(1e-4 * conv.weight.detach() + 1e-5 * torch.randn_like(conv.weight))
    with pytest.raises(WSError, match='cannot fuse a norm into this layer'):
        conv.weight = nn.Parameter(conv.weight.detach() * torch.rand(32, 1, 1, 1).half())

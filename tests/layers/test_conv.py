import copy
import inspect
import pickle

import pytest
import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d as MmcvConvWS2d
from mmengine.model import BaseModule
from torch import nn

from mmws import ConvWS1d, ConvWS2d, ConvWS3d, standardize_weight

PAIRS = [(ConvWS1d, nn.Conv1d, 1), (ConvWS2d, nn.Conv2d, 2), (ConvWS3d, nn.Conv3d, 3)]
ARGUMENTS = [
    {}, {'stride': 2, 'padding': 1, 'bias': False}, {'dilation': 2, 'groups': 2}, {'padding': 'same'},
    {'padding': 1, 'padding_mode': 'circular'}, {'padding': 2, 'padding_mode': 'replicate'}, {'dtype': torch.float64},
]


@pytest.mark.parametrize('arguments', ARGUMENTS, ids=str)
@pytest.mark.parametrize(('ours', 'plain', 'dims'), PAIRS)
def test_is_the_plain_conv_with_a_standardized_weight(ours, plain, dims, arguments):
    conv, reference = ours(4, 6, 3, **arguments), plain(4, 6, 3, **arguments)
    assert list(conv.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(conv.state_dict())
    reference.weight.data = standardize_weight(conv.weight.data)
    x = torch.randn(2, 4, *[7] * dims, dtype=arguments.get('dtype', torch.float32))
    assert torch.equal(conv(x), reference(x))


@pytest.mark.parametrize(('ours', 'plain', 'dims'), PAIRS)
def test_takes_the_arguments_of_the_plain_conv_by_position_and_by_name(ours, plain, dims):
    names = [name for name in inspect.signature(plain).parameters if name not in ('device', 'dtype')]
    values = [4, 6, 3, 2, 1, 1, 2, False, 'circular']
    by_position = ours(*values, torch.device('cpu'), torch.float64)
    by_name = ours(**dict(zip(names, values, strict=True)), device='cpu', dtype=torch.float64, eps=1e-3)
    assert by_position.padding_mode == by_name.padding_mode == 'circular'
    assert by_position.weight.dtype == by_name.weight.dtype == torch.float64
    assert (by_position.eps, by_name.eps) == (1e-5, 1e-3)


def test_outputs_are_mmcvs():
    conv, theirs = ConvWS2d(6, 8, 3, groups=2), MmcvConvWS2d(6, 8, 3, groups=2)
    theirs.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(conv(x), theirs(x), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize('ours', [ConvWS1d, ConvWS2d, ConvWS3d])
def test_fan_in_of_1_is_refused_at_construction(ours):
    with pytest.raises(ValueError, match='fan-in of at least 2, got 1'):
        ours(8, 8, 1, groups=8)


def test_copies_and_pickles_compute_the_same():
    conv = ConvWS2d(4, 6, 3, eps=1e-2)
    x = torch.randn(1, 4, 8, 8)
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert type(twin) is ConvWS2d
        assert torch.equal(twin(x), conv(x))


def test_initializers_see_a_conv():
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


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_train(dtype):
    conv, x = ConvWS2d(4, 6, 3), torch.randn(2, 4, 8, 8)
    with torch.autocast('cpu', dtype=dtype):
        out = conv(x)
    out.float().sum().backward()
    assert out.dtype == dtype
    assert conv.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), conv(x), rtol=0.05, atol=0.05)
    assert conv.to(dtype)(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_gives_mmcvs_outputs_and_gradients(dtype):
    conv, theirs, x = ConvWS2d(16, 32, 3), MmcvConvWS2d(16, 32, 3), torch.randn(2, 16, 12, 12)
    theirs.load_state_dict(conv.state_dict())
    with torch.autocast('cpu', dtype=dtype):
        outs = [layer(x) for layer in (conv, theirs)]
    upstream = torch.randn_like(outs[0])
    ours, expected = (torch.autograd.grad(out, layer.weight, upstream)[0] for out, layer in zip(
        outs, (conv, theirs), strict=True))
    torch.testing.assert_close(outs[0], outs[1], rtol=0.016, atol=0.016)  # a weight may round to the neighbour
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


def test_channels_last_stays():
    conv = ConvWS2d(4, 6, 3).to(memory_format=torch.channels_last)
    out = conv(torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_compiles_in_one_graph():
    conv, x = ConvWS2d(4, 6, 3), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend='aot_eager')(x), conv(x))

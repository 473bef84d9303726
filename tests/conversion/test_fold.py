import copy
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmcv.cnn.bricks.conv_ws import ConvWS2d as MmcvConvWS2d
from mmcv.ops import DeformConv2dPack
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmws import ConvTransposeWS2d, ConvWS1d, ConvWS2d, ConvWS3d, WSError, convert_, fold, standardize_weight
from mmws.conversion.swap_convs import standardize_conv_
from tests.helpers.pairs import pairs
from tests.helpers.versions import HALF, ONE_GRAPH, WN, needs_torch


def batch_normed() -> nn.Module:
    """Return a BN+WS network with random statistics and gains, some negative and some zero."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3),
                        nn.BatchNorm2d(6))
    convert_(net, norm='keep')
    for norm in (net[1], net[4]):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.zeros_(norm.weight[:2])
    return net.eval()


def gap(output, expected):
    return (output - expected).norm().item() / expected.norm().item()


@pytest.mark.parametrize(('conv', 'plain', 'shape'), [
    (ConvWS1d(4, 6, 3, groups=2, padding=1, padding_mode='circular'), nn.Conv1d, (2, 4, 9)),
    (ConvWS2d(4, 6, 3, stride=2, dilation=2, bias=False, eps=1e-2), nn.Conv2d, (2, 4, 9, 9)),
    (ConvWS3d(4, 6, 2), nn.Conv3d, (2, 4, 5, 5, 5)),
    (MmcvConvWS2d(4, 6, 3, eps=1e-2), nn.Conv2d, (2, 4, 9, 9)),
])
def test_a_folded_conv_is_plain_and_has_the_same_output(conv, plain, shape):
    folded = fold(conv.eval())
    assert type(folded) is plain
    assert vars(folded).keys() == vars(plain(1, 1, 1)).keys()
    x = torch.randn(shape)
    assert gap(folded(x), conv(x)) < 1e-6
    assert type(conv) is not plain  # fold changes only the copy


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, HALF])
def test_dtype_gradients_hooks_and_mode_are_kept(dtype):
    net = nn.Sequential(ConvWS2d(3, 4, 3), nn.GroupNorm(2, 4)).to(dtype).eval()
    net[0].weight.requires_grad_(False)
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    folded, x = fold(net), torch.randn(1, 3, 6, 6, dtype=dtype)
    assert torch.equal(folded(x), net(x))
    assert [parameter.requires_grad for parameter in folded.parameters()] == [False, True, True, True]
    assert folded[0].weight.dtype is dtype
    assert len(seen) == 2
    assert not folded[0].training


def test_sharing_is_kept_and_a_plain_conv_keeps_the_raw_weight():
    once, twice, other, plain = ConvWS2d(4, 4, 1), ConvWS2d(4, 4, 1), ConvWS2d(4, 4, 1, eps=0.1), nn.Conv2d(4, 4, 1)
    twice.weight = other.weight = plain.weight = once.weight
    net = nn.ModuleList([once, twice, other, plain, once]).eval()
    folded, x = fold(net), torch.randn(1, 4, 3, 3)
    assert folded[0] is folded[4]
    assert folded[0].weight is folded[1].weight is not folded[2].weight
    assert all(torch.allclose(conv(x), original(x), atol=1e-6) for conv, original in pairs(folded, net))
    assert torch.equal(folded[3].weight, plain.weight)
    assert len(list(folded.parameters())) == 7  # three weights, four biases


def test_a_folded_network_needs_no_mmws(mmdet_scope):
    net = MODELS.build({'type': 'mmws.ResNet', 'depth': 18, 'base_channels': 8, 'stem_channels': 8})
    net.eval()  # mmdet's override returns None
    folded, x = fold(net), torch.randn(1, 3, 64, 64)
    assert b'mmws' in pickle.dumps(net)
    assert b'mmws' not in pickle.dumps(folded)
    for output, expected in pairs(folded(x), net(x)):
        assert gap(output, expected) < 1e-5
    assert folded.state_dict().keys() == net.state_dict().keys()


class Odd(ConvWS2d):
    pass


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: nn.Sequential(nn.ReLU().eval(), ConvWS2d(2, 2, 1)), r'the model \(Sequential\) is in training mode'),
    (lambda: nn.ModuleDict({'conv': ConvWS2d(2, 2, 1).eval(), 'drop': nn.Dropout()}).apply(
        lambda m: setattr(m, 'training', isinstance(m, nn.Dropout))), r'fold: drop \(Dropout\) is in training mode'),
    (lambda: nn.Sequential(Odd(2, 2, 1)).eval(), '0 has class Odd, an unknown subclass of a standardized convolution'),
    (lambda: nn.Sequential(prune.identity(ConvWS2d(2, 2, 1), 'weight')).eval(), 'weight of 0 is not a parameter'),
    (lambda: parametrize.register_parametrization(ConvWS2d(2, 2, 1), 'weight', nn.Identity()).eval(),
     r"the module has a parametrization of other code; .*parametrize\.remove_parametrizations\(module, 'weight'\)"),
])
def test_unsupported_networks_are_not_folded(make, message):
    with pytest.raises(WSError, match=message):
        fold(make())


def test_a_norm_can_be_fused_only_after_folding():
    net, x = batch_normed(), torch.randn(2, 3, 9, 9)
    expected, before = net(x), copy.deepcopy(net.state_dict())
    with pytest.raises(WSError, match=r'cannot fuse a norm into this layer, ConvWS2d\(3, 8.*fold first: model\.eval'):
        fuse_conv_bn(net)
    with pytest.raises(WSError, match='standardization undoes the scale'):
        fuse_conv_bn_eval(net[3], net[4])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    fused = fuse_conv_bn(fold(net))
    assert [type(module) for module in fused] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d, nn.Identity]
    assert gap(fused(x), expected) < 1e-5
    torch_fused = fuse_conv_bn_eval(fold(net)[0], net[1])
    assert gap(torch_fused(x), net[1](net[0](x))) < 1e-5


@torch.no_grad()
def test_a_norm_can_be_fused_into_a_transposed_conv_only_after_folding():
    conv, norm, x = ConvTransposeWS2d(4, 6, 2, bias=False).eval(), nn.BatchNorm2d(6).eval(), torch.randn(1, 4, 5, 5)
    nn.init.normal_(norm.weight)
    with pytest.raises(WSError, match=r'cannot fuse a norm into this layer, ConvTransposeWS2d\(4, 6'):
        fuse_conv_bn_eval(conv, norm, transpose=True)
    assert gap(fuse_conv_bn_eval(fold(conv), norm, transpose=True)(x), norm(conv(x))) < 1e-5


def test_a_norm_can_be_fused_at_runtime_only_after_folding():
    runtime = pytest.importorskip('mmengine.model.efficient_conv_bn_eval', reason='needs mmengine 0.8')
    block = ConvModule(3, 8, 3, conv_cfg={'type': 'mmws.ConvWS'}, norm_cfg={'type': 'BN'}).eval()
    nn.init.normal_(block.bn.weight)
    x = torch.randn(1, 3, 7, 7)
    expected = block(x)
    block.turn_on_efficient_conv_bn_eval()
    with pytest.raises(WSError, match='a weight that is not its own'):
        block(x)
    assert gap(fold(block)(x), expected) < 1e-5
    net = batch_normed()
    folded = fold(net)
    runtime.turn_on_efficient_conv_bn_eval(nn.ModuleList([folded]), '0')
    y = torch.randn(1, 3, 9, 9)
    assert gap(folded(y), net(y)) < 1e-5


@pytest.mark.parametrize('weight', [
    torch.randn(4, 3, 2, 2), torch.randn(4, 5, 2, 2), torch.ones(4, 3, 2, 2, device='meta')])
def test_the_weight_can_be_replaced(weight):
    conv = ConvWS2d(3, 4, 2)
    conv.weight = nn.Parameter(weight)
    assert conv.weight.shape == weight.shape
    conv.weight = nn.Parameter(conv.weight.detach().clone())


def test_parametrizations_and_functional_calls_work():
    conv, x = ConvWS2d(3, 4, 2), torch.randn(1, 3, 4, 4)
    expected = conv(x)
    doubled = {'weight': conv.weight * 2, 'bias': conv.bias}
    assert torch.allclose(torch.func.functional_call(conv, doubled, x), expected, atol=1e-3)
    parametrize.register_parametrization(conv, 'weight', nn.Identity())
    assert torch.equal(conv(x), expected)


@needs_torch('2.3', 'torch.export.export of a standardized convolution')
@pytest.mark.parametrize('folding', [False, True])
def test_export(folding):
    net, x = batch_normed(), torch.randn(2, 3, 9, 9)
    expected = net(x)
    exported = torch.export.export(fold(net) if folding else net, (x,))
    assert gap(exported.module()(x), expected) < 1e-6
    operators = [str(node.target) for node in exported.graph.nodes]
    assert any('var_mean' in name or 'layer_norm' in name for name in operators) is not folding


@pytest.mark.parametrize('folding', [False, True])
def test_compile(folding):
    net, x = batch_normed(), torch.randn(2, 3, 9, 9)
    expected = net(x)
    compiled = torch.compile(fold(net) if folding else net, backend='aot_eager', fullgraph=folding or ONE_GRAPH)
    assert gap(compiled(x), expected) < 1e-6


def test_the_folded_weight_is_the_standardized_weight():
    conv = ConvWS2d(3, 4, 3, eps=1e-2).eval()
    assert torch.equal(fold(conv).weight, standardize_weight(conv.weight, 1e-2))


@pytest.mark.parametrize('conv', [
    nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), DeformConv2dPack(4, 6, 3, padding=1),
    Conv2dAdaptivePadding(4, 6, 3)],
    ids=lambda conv: type(conv).__name__)
def test_convs_of_every_library_fold_to_their_plain_class(conv):
    plain, x = type(conv), torch.randn(2, 4, 8, 8)
    standardize_conv_(conv).eval()
    folded = fold(conv)
    assert type(folded) is plain
    torch.testing.assert_close(folded(x), conv(x))
    assert 'eps' not in vars(folded)


@pytest.mark.parametrize('weight', ['ws', WN, 'spectral'])
def test_a_pickle_of_a_folded_model_does_not_need_mmws(weight, mmdet_scope):
    net = MODELS.build({'type': 'mmws.ResNet', 'depth': 18, 'ws': {'weight': weight}})
    net.eval()  # mmdet's returns None
    folded = fold(net)
    pickled = pickle.dumps(folded)
    assert b'mmws' not in pickled
    x = torch.randn(1, 3, 32, 32)
    for out, expected in pairs(pickle.loads(pickled)(x), net(x)):
        assert gap(out, expected) < 1e-4
    folded.init_weights()  # the toolkit's own
    assert not torch.equal(folded.conv1.weight, fold(net).conv1.weight)

"""Standardized layers in symbolic traces, in the tools that use them, and in torch.jit."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

import mmws

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('dims', [1, 2, 3])
@pytest.mark.parametrize('kind', ['ConvWS', 'ConvTransposeWS'])
def test_a_layer_in_a_network_is_one_node(kind, dims):
    layer, x = getattr(mmws, f'{kind}{dims}d')(4, 8, 3), torch.randn(2, 4, *[8] * dims)
    traced = fx.symbolic_trace(nn.Sequential(layer))
    assert [node.op for node in traced.graph.nodes] == ['placeholder', 'call_module', 'output']
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize('dims', [1, 2, 3])
def test_a_layer_alone_is_traced_to_its_formula(dims):
    """torch cannot trace a transposed convolution alone, standardized or not."""
    layer, x = getattr(mmws, f'ConvWS{dims}d')(4, 8, 3), torch.randn(2, 4, *[8] * dims)
    traced = fx.symbolic_trace(layer)
    assert 'standardize_weight' in traced.code
    torch.testing.assert_close(traced(x), layer(x))
    with torch.no_grad():
        layer.weight[0, 0] += 1  # both have this weight
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize('norm', ['GN', 'SN', 'BCN', 'keep'])
def test_a_traced_network_has_the_same_output(norm):
    net = resnet18().eval()
    mmws.convert_(net, norm=norm)
    traced = fx.symbolic_trace(net)
    for copied in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        torch.testing.assert_close(copied(X), net(X))


def test_a_feature_extractor_returns_standardized_outputs():
    net = resnet18().eval()
    mmws.convert_(net)
    features = create_feature_extractor(net, ['conv1', 'layer4.0.conv1'])(X)
    torch.testing.assert_close(features['conv1'], net.conv1(X))
    assert features['layer4.0.conv1'].shape == (2, 512, 2, 2)


def test_efficient_conv_bn_eval_changes_nothing_with_groupnorm_and_is_refused_with_batchnorm():
    runtime = pytest.importorskip('mmengine.model.efficient_conv_bn_eval', reason='needs mmengine 0.8')
    for norm in ('GN', 'keep'):
        net = nn.ModuleDict({'backbone': resnet18().eval()})
        mmws.convert_(net, norm=norm)
        expected = net.backbone(X)
        runtime.turn_on_efficient_conv_bn_eval(net, ['backbone'])
        if norm == 'GN':
            torch.testing.assert_close(net.backbone(X), expected)
        else:
            with pytest.raises(mmws.WSError, match=r'cannot fuse a norm into this layer, ConvWS2d\(3, 64.*fold first'):
                net.backbone(X)


def test_script_compiles_a_folded_network_and_asks_to_fold_another():
    net = resnet18().eval()
    mmws.convert_(net)
    with pytest.raises(mmws.WSError, match=r'torch\.jit\.script.*fold first'):
        torch.jit.script(net)
    torch.testing.assert_close(torch.jit.script(mmws.fold(net))(X), net(X), rtol=1e-4, atol=1e-4)

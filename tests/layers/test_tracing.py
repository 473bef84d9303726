"""Standardized layers in symbolic traces, in the tools that use them, and in torch.jit."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import fx, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

import mmws
from tests.helpers.versions import ONE_GRAPH

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


class SamePadding(nn.Conv2d):
    def forward(self, image):
        return nn.functional.conv2d(nn.functional.pad(image, (1, 1, 1, 1)), self.weight, self.bias)


def test_a_converted_class_alone_is_traced_to_its_formula():
    net, x = nn.Sequential(SamePadding(3, 8, 3), nn.BatchNorm2d(8)), torch.randn(2, 3, 5, 5)
    assert mmws.convert_(net).converted == ['0']
    assert list(inspect.signature(net[0].forward).parameters) == ['image']
    traced = fx.symbolic_trace(net[0])
    assert 'standardize_weight' in traced.code
    with torch.no_grad():
        net[0].weight[0, 0] += 1
    torch.testing.assert_close(traced(x), net[0](x))


class Each(nn.Conv2d):
    def forward(self, images):
        return [self._conv_forward(image, self.weight, self.bias) for image in images]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = Each(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv([x, x.flip(3)])[1])


def test_a_layer_that_gets_a_list_is_one_node():
    net, x = Pair(), torch.randn(2, 3, 5, 5)
    assert mmws.convert_(net).converted == ['conv']
    traced = fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == 'call_module'] == ['conv', 'norm']
    torch.testing.assert_close(traced(x), net(x))
    compiled = torch.compile(net, fullgraph=ONE_GRAPH, backend='aot_eager')
    torch.testing.assert_close(compiled(x), net(x))


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

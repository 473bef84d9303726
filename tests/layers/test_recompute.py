"""Layers with ``use_cache=False``: same results, no second weight in memory."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from mmws import ConvTransposeWS2d, ConvWS1d, ConvWS2d, ConvWS3d, WSError, convert_, fold
from mmws.layers.recompute import RecomputedWeight
from tests.helpers.versions import is_older

LAYERS = {
    '1d': (partial(ConvWS1d, 4, 6, 3, padding=1), (2, 4, 9)),
    '2d': (partial(ConvWS2d, 4, 6, 3, padding='same', padding_mode='reflect'), (2, 4, 9, 8)),
    'groups': (partial(ConvWS2d, 4, 6, 3, groups=2, bias=False), (2, 4, 9, 8)),
    '3d': (partial(ConvWS3d, 4, 6, 3), (2, 4, 5, 6, 7)),
    'transposed': (partial(ConvTransposeWS2d, 4, 6, 3, groups=2, stride=2), (2, 4, 5, 6))}


def pair(make, **kwargs):
    """Return a layer and its copy that does not use the cache."""
    torch.manual_seed(0)
    cached = make(**kwargs)
    again = copy.deepcopy(cached)
    again.use_cache = False
    return cached, again


def gradients(layer, x, forward=None):
    x = x.clone().requires_grad_()
    output = (layer if forward is None else forward)(x)
    output.float().square().sum().backward()
    found = [output.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]
    layer.zero_grad()
    return found


@pytest.mark.parametrize('kind', LAYERS)
def test_outputs_and_gradients_are_those_of_the_cached_layer(kind):
    make, shape = LAYERS[kind]
    cached, again = pair(make)
    x = torch.randn(shape)
    for ours, theirs in zip(gradients(again, x), gradients(cached, x)):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(again(x), cached(x))
    assert again._cache is None


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    make, shape = LAYERS['groups']
    cached, again = pair(make)
    x = torch.randn(shape, dtype=dtype)
    for ours, theirs in zip(gradients(again.to(dtype), x), gradients(cached.to(dtype), x)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])  # autocast leaves float64 as it is
def test_autocast(dtype):
    make, shape = LAYERS['groups']
    cached, again = (layer.to(dtype) for layer in pair(make))

    def forward(layer, x):
        with torch.autocast('cpu', torch.bfloat16):
            return layer(x)

    x = torch.randn(shape, dtype=dtype)
    expected = gradients(cached, x, partial(forward, cached))
    for ours, theirs in zip(gradients(again, x, partial(forward, again)), expected):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def test_second_derivatives():
    _, layer = pair(partial(ConvWS2d, 2, 3, 2, bias=False))
    layer = layer.double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, weight: torch.func.functional_call(layer, {'weight': weight}, x),
                                        (x, layer.weight))


@pytest.fixture
def storages(monkeypatch):
    """Return weak references to the memory of each standardized weight."""
    found, enter = [], RecomputedWeight.__enter__

    def recorded(context):
        standardized = enter(context)
        found.append(StorageWeakRef(standardized.untyped_storage()))
        return standardized

    monkeypatch.setattr(RecomputedWeight, '__enter__', recorded)
    return found


@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', LAYERS)
def test_the_standardized_weight_is_freed_after_the_convolution(kind, amp, storages):
    make, shape = LAYERS[kind]
    _, layer = pair(make)
    x = torch.randn(shape, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        output = layer(x)
    assert [storage.expired() for storage in storages] == [True]
    output.float().sum().backward()
    assert x.grad is not None


class Scaled(nn.Conv2d):
    """A class with a forward of its own."""

    def forward(self, x):
        return torch.conv2d(2 * x, self.weight, self.bias)


def test_a_converted_network(storages):
    nets = [nn.Sequential(Scaled(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
            for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    assert [len(convert_(net, cache=cache).converted) for net, cache in zip(nets, (True, False))] == [2, 2]
    x = torch.randn(2, 3, 5, 5)
    for ours, theirs in zip(gradients(nets[1], x), gradients(nets[0], x)):
        torch.testing.assert_close(ours, theirs)
    assert len(storages) == 2
    assert repr(nets[1][2]).endswith('eps=1e-05, use_cache=False)')
    for twin in (copy.deepcopy(nets[1]), pickle.loads(pickle.dumps(nets[1]))):
        assert not twin[0].use_cache
        torch.testing.assert_close(twin(x), nets[0](x))
    folded = fold(nets[1].eval())
    torch.testing.assert_close(folded(x), nets[1](x))
    assert 'use_cache' not in vars(folded[2])
    convert_(nets[1], cache=True)
    assert nets[1][0].use_cache


def test_a_wrong_option():
    with pytest.raises(WSError, match='ws option cache: expected True or False, got 0'):
        convert_(nn.Conv2d(3, 8, 3), cache=0)


def test_what_changes_in_place_before_the_backward_pass_is_an_error():
    _, layer = pair(partial(ConvWS2d, 3, 4, 3))
    x = torch.randn(1, 3, 5, 5)
    output = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match=r'changed in place after the forward pass: \(1, 3, 5, 5\), torch.float32'):
        output.sum().backward()
    output = layer(torch.randn(1, 3, 5, 5, requires_grad=True))
    with torch.no_grad():
        layer.weight.zero_()
    with pytest.raises(RuntimeError, match=r'changed in place|modified by an inplace operation'):
        output.sum().backward()


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_activation_checkpointing(use_reentrant):
    cached, again = pair(partial(ConvWS2d, 4, 6, 3))
    x = torch.randn(2, 4, 5, 5)
    for ours, theirs in zip(gradients(again, x, lambda x: checkpoint(again, x, use_reentrant=use_reentrant)),
                            gradients(cached, x)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(is_older('torch', '2.5'), reason='this torch does not tell the hooks that are in use')
def test_hooks_of_activation_checkpointing_stay_in_use(storages):
    _, layer = pair(partial(ConvWS2d, 4, 6, 3))
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert storages == []
    assert x.grad is not None


def test_frozen_and_compiled_layers():
    cached, again = pair(partial(ConvWS2d, 4, 6, 3))
    compiled = torch.compile(again, backend='aot_eager')
    x = torch.randn(2, 4, 5, 5)
    for ours, theirs in zip(gradients(again, x, compiled), gradients(cached, x)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for layer in (cached, again):
        layer.requires_grad_(False)
    for ours, theirs in zip(gradients(again, x)[:2], gradients(cached, x)[:2]):
        torch.testing.assert_close(ours, theirs)

"""Checks of one layer: formula, gradient, and that each change of its weight is seen."""

from __future__ import annotations

import copy
import pickle

import torch

from mmws import ConvTransposeWS2d, ConvWS2d, standardize_weight
from tests.gpu.compare import assert_close, assert_fresh, formula, layer, new_values, train


def check_formula_and_gradient(device: str) -> None:
    """Values and gradients are those of the authors' formula; a constant filter gives zeros."""
    torch.manual_seed(0)
    for shape in ((8, 4, 3, 3), (64, 3, 7, 7), (5, 6, 1, 1), (512, 512, 3, 3)):
        conv = ConvWS2d(shape[1], shape[0], shape[2]).to(device)
        assert_fresh(conv)
        functional = standardize_weight(conv.weight, conv.eps)
        assert_close(functional, formula(conv)[0], 'standardize_weight')
    conv.weight.data[0] = 7
    assert conv.standardized_weight()[0].abs().max() == 0, 'a constant filter does not give zeros'


def check_optimizer_step(device: str) -> None:
    """Each kind of optimizer kernel makes the cached weights new: SGD, AdamW; for each, foreach, fused."""
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        for options in ({'foreach': False}, {'foreach': True}, {'fused': True}):
            conv = layer(device)
            optimizer = kind(conv.parameters(), lr=0.1, **options)
            for _ in range(2):
                train(conv, torch.randn(2, 16, 8, 8, device=device), optimizer)
                assert_fresh(conv)


def check_data_write(device: str) -> None:
    """Writes through ``.data``, also to one element and through an older reference, are seen."""
    conv = layer(device)
    held = conv.weight.data
    for write in (lambda: conv.weight.data.neg_(), lambda: conv.weight.data.view(-1)[17:18].add_(1),
                  lambda: held.mul_(torch.rand_like(held)), lambda: setattr(conv.weight, 'data', new_values(conv))):
        write()
        assert_fresh(conv)


def check_load_state_dict(device: str) -> None:
    """Loaded weights are seen, copied or assigned."""
    conv = layer(device)
    for assign in (False, True):
        conv.load_state_dict({'weight': new_values(conv), 'bias': conv.bias.detach()}, assign=assign)
        assert_fresh(conv)


def check_set(device: str) -> None:
    """``Tensor.set_`` gives the weight another memory, which is seen."""
    conv = layer(device)
    for _ in range(2):
        values = new_values(conv)
        with torch.no_grad():
            conv.weight.set_(values)
        assert torch.equal(conv.weight, values)
        assert_fresh(conv)


def check_moved(device: str) -> None:
    """A layer that went to another dtype, memory format or device, and came back, is right."""
    conv = layer(device)
    for there in (lambda: conv.double(), lambda: conv.float(), lambda: conv.to(memory_format=torch.channels_last),
                  lambda: conv.cpu(), lambda: conv.to(device)):
        there()
        assert_fresh(conv)


def check_half_weights(device: str) -> None:
    """Weights in float16 and bfloat16 get float32 statistics: the error is that of rounding the result."""
    for dtype in (torch.bfloat16, torch.float16):
        conv = ConvWS2d(16, 32, 3).to(device, dtype)
        for _ in range(2):
            assert_close(conv.standardized_weight(), formula(conv)[0], f'the weight in {dtype} with a gradient', 1e-2)
            with torch.inference_mode():
                cached = conv.standardized_weight()
            assert_close(cached, formula(conv)[0], f'the cached weight in {dtype}', 1e-2)
            conv.weight.data.neg_()


def check_second_forward_before_backward(device: str) -> None:
    """A forward pass after a change of the weights does not change the gradients of the one before."""
    conv, x = layer(device), torch.randn(2, 16, 8, 8, device=device)
    expected = torch.autograd.grad(conv(x).square().sum(), conv.weight)[0]
    first = conv(x)
    conv.weight.data.normal_()
    conv(x)
    assert_close(torch.autograd.grad(first.square().sum(), conv.weight)[0], expected, 'the gradient of the first pass')


def check_copies_and_pickles(device: str) -> None:
    """Copies and pickles have their own weights and no cache."""
    conv = layer(device)
    for copied in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert copied._cache is None, 'the cache was copied'
        copied.weight.data.neg_()
        assert_fresh(copied)
        assert_fresh(conv)


def check_transposed(device: str) -> None:
    """Transposed convolutions standardize the filters of their outputs, and stay fresh."""
    torch.manual_seed(0)
    conv = ConvTransposeWS2d(8, 4, 2, stride=2).to(device)
    for _ in range(3):
        assert_fresh(conv)
        train(conv, torch.randn(2, 8, 8, 8, device=device), torch.optim.SGD(conv.parameters(), lr=0.1))

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmws import standardize_weight
from tests.helpers.authors import authors

SHAPES = [(8, 4, 3), (8, 4, 3, 3), (6, 1, 3, 3), (4, 2, 3, 3, 3), (16, 64, 1, 1)]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('shape', SHAPES)
def test_forward_and_gradient_equal_the_authors(shape, dtype):
    weight = torch.randn(shape, dtype=dtype, requires_grad=True)
    upstream = torch.randn(shape, dtype=dtype)
    out, expected = standardize_weight(weight), authors(weight)
    assert (out - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    gradient, expected_gradient = (torch.autograd.grad(form, weight, upstream)[0] for form in (out, expected))
    assert (gradient - expected_gradient).abs().max() <= TOLERANCE[dtype] * expected_gradient.abs().max()


@pytest.mark.parametrize('shape', SHAPES)
def test_biased_form_equals_the_formula_in_numpy(shape):
    weight = np.random.default_rng(0).normal(size=shape)
    per_filter = tuple(range(1, weight.ndim))
    mean, std = (f(weight, axis=per_filter, keepdims=True) for f in (np.mean, np.std))
    out = standardize_weight(torch.from_numpy(weight), unbiased=False).numpy()
    np.testing.assert_allclose(out, (weight - mean) / (std + 1e-5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize('order', [(0, 1, 2, 3), (0, 3, 1, 2), (1, 0, 2, 3)])
def test_gradcheck(order, unbiased):
    """Check memory orders: contiguous, channels_last, that of a transposed convolution."""
    weight = torch.randn(3, 2, 3, 2, dtype=torch.float64).permute(order).requires_grad_()
    checked = partial(standardize_weight, unbiased=unbiased)
    assert torch.autograd.gradcheck(checked, weight, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(checked, weight, check_batched_grad=True)


@given(st.integers(0, 2 ** 32 - 1), st.integers(2, 40), st.floats(-4, 2), st.floats(-8, 1), st.booleans())
def test_gradient_has_the_proven_norm_and_direction(seed, fan_in, scale, eps, unbiased):
    r"""Let :math:`\hat w = (w - m) / (s + e)` and :math:`g` its gradient. The gradient of :math:`w` is orthogonal to
    the constant vector. Its inner product with :math:`\hat w` is :math:`e \langle g, \hat w \rangle / (s + e)^2`.
    The part along :math:`\hat w` shrinks by :math:`e / (s + e)^2 \le 1 / (s + e)`, the orthogonal part by
    :math:`1 / (s + e)`.
    """
    generator, eps = torch.Generator().manual_seed(seed), 10 ** eps
    random = torch.randn(2, 5, fan_in, 1, generator=generator, dtype=torch.float64)
    weight, upstream = (random[0] * 10 ** scale).requires_grad_(), random[1]
    standardized = standardize_weight(weight, eps, unbiased)
    gradient = torch.autograd.grad(standardized, weight, upstream)[0].flatten(1)
    std, hat = weight.flatten(1).std(1, correction=int(unbiased)).detach(), standardized.detach().flatten(1)
    bound, along = upstream.flatten(1).norm(dim=1) / (std + eps), (upstream.flatten(1) * hat).sum(1)
    tiny = 1e-9 * (bound + bound.mean())
    assert (gradient.sum(1).abs() <= tiny * fan_in ** 0.5).all()
    assert ((gradient * hat).sum(1) - eps * along / (std + eps) ** 2).abs().le(tiny * fan_in ** 0.5).all()
    assert (gradient.norm(dim=1) <= bound + tiny).all()
    off = upstream.flatten(1) - upstream.flatten(1).mean(1, keepdim=True)
    off = off - hat * (along / hat.square().sum(1)).unsqueeze(1)
    by_parts = (off.norm(dim=1) ** 2 + (eps * along / (std + eps) / hat.norm(dim=1)) ** 2).sqrt() / (std + eps)
    torch.testing.assert_close(gradient.norm(dim=1), by_parts, rtol=1e-7, atol=float(tiny.max()))


def test_filters_have_mean_0_and_std_1():
    standardized = standardize_weight(3 + 5 * torch.randn(8, 4, 3, 3)).flatten(1)
    torch.testing.assert_close(standardized.mean(1), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardized.std(1), torch.ones(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('value', [0.0, 0.1, -1e-8, 1e4])
def test_constant_filter_gives_zeros_and_a_finite_gradient(value, dtype):
    weight = torch.full((4, 37, 3, 3), value, dtype=dtype, requires_grad=True)
    out = standardize_weight(weight)
    assert not out.any()
    out.float().backward(torch.randn(out.shape) * 1e-3)
    assert weight.grad.isfinite().all()


def test_constant_filter_gives_zeros_if_the_kernel_fuses_multiply_and_add(monkeypatch):
    kernel = torch.native_group_norm

    def fused(*args):
        normalized, mean, reciprocal = kernel(*args)
        return normalized + reciprocal.unsqueeze(2) * 1e-9, mean, reciprocal

    monkeypatch.setattr(torch, 'native_group_norm', fused)
    assert not standardize_weight(torch.full((4, 37, 3, 3), 0.1)).any()


@pytest.mark.parametrize('std', [1e-12, 1e-8, 1e-5, 1e-3, 1, 1e4])
@pytest.mark.parametrize('mean', [0, 1, 30])
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_weights_of_any_size(std, mean, dtype):
    weight = ((mean + torch.randn(8, 64, 3, 3)) * std).to(dtype).requires_grad_()
    exact = weight.detach().double().requires_grad_()
    upstream = torch.randn_like(exact)
    pairs = [(out, torch.autograd.grad(out, leaf, upstream.to(out))[0]) for out, leaf in (
        (standardize_weight(weight), weight), (authors(exact), exact))]
    for result, expected in zip(*pairs):
        assert (result - expected).abs().max() <= TOLERANCE[dtype] * max(1, mean) * expected.abs().max()


@pytest.mark.parametrize('eps', [0, 1e-30, 1e-5, 1e10])
@pytest.mark.parametrize('fan_in', [2, 9, 576])
@pytest.mark.parametrize('std', [1e-8, 1, 1e4])
def test_any_eps_and_small_filters(eps, fan_in, std):
    weight = (torch.randn(64, fan_in) * std).requires_grad_()
    exact = weight.detach().double().requires_grad_()
    upstream = torch.randn(64, fan_in)
    (result, gradient), (expected, expected_gradient) = (
        (out, torch.autograd.grad(out, leaf, upstream.to(out))[0])
        for out, leaf in ((standardize_weight(weight, eps), weight), (authors(exact, eps), exact)))
    spread = exact.std(1, keepdim=True)
    conditioning = 1 + exact.mean(1, keepdim=True).abs() / spread
    assert ((result - expected).abs() / conditioning).max() <= 1e-6 * max(1, expected.abs().max())
    # The exact gradient of a filter of two weights is zero, so the error is relative to the terms of the gradient.
    size = upstream.norm(dim=1, keepdim=True) / (spread + eps) * conditioning
    assert ((gradient - expected_gradient).abs() / size).max() <= 1e-6


@pytest.mark.parametrize('eps', [0, 1e-30])
def test_constant_filter_with_a_negligible_eps(eps):
    weight = torch.full((4, 8), 0.1, requires_grad=True)
    out = standardize_weight(weight, eps)
    assert not out.any()
    assert torch.autograd.grad(out, weight, torch.randn(4, 8))[0].isfinite().all()


@pytest.mark.parametrize('unbiased', [True, False])
def test_fan_in_of_1_is_refused(unbiased):
    with pytest.raises(ValueError, match=r'fan-in of at least 2, got 1 .*\(8, 1, 1, 1\)'):
        standardize_weight(torch.randn(8, 1, 1, 1), unbiased=unbiased)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_has_float32_statistics(dtype):
    weight = (10 + torch.randn(8, 4, 3, 3)).to(dtype)  # statistics in half precision would be off by far more
    out = standardize_weight(weight)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), authors(weight.double()), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_autocast_changes_nothing():
    weight = torch.randn(8, 4, 3, 3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        under_autocast = standardize_weight(weight)
    assert torch.equal(under_autocast, standardize_weight(weight))


def test_memory_format_is_kept():
    weight = torch.randn(8, 4, 3, 3)
    out = standardize_weight(weight.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, standardize_weight(weight))
    assert standardize_weight(weight.transpose(2, 3)).shape == weight.shape


@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.bool])
def test_a_weight_of_integers_is_one_clear_error(dtype):
    with pytest.raises(ValueError, match=rf'a floating dtype, got {dtype} \(weight of shape \(2, 3, 1, 1\)\)'):
        standardize_weight(torch.ones(2, 3, 1, 1, dtype=dtype))

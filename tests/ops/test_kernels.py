import pytest
import torch

from mmws import standardize_weight
from mmws.ops import cpp_kernels
from mmws.ops.kernels import filter_gradient, standardize_filters, standardize_together
from tests.helpers.cpp import can_compile
from tests.helpers.pairs import pairs

SHAPES = [(8, 4, 3), (8, 4, 3, 3), (6, 1, 3, 3), (4, 2, 3, 3, 3), (16, 36, 1, 1), (1, 2, 1, 1)]


@pytest.fixture(autouse=True, params=[False, True], ids=['torch', 'C++'])
def _kernels(request, monkeypatch):
    """Run each test with torch's operators and with the C++ kernels."""
    monkeypatch.setattr(cpp_kernels, 'enabled', request.param)
    if request.param:
        if not can_compile():
            pytest.skip('needs a C++ compiler, ninja and torch >= 2.1')
        assert cpp_kernels.build() is not None


def filters(dtype):
    weights = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    weights[1] = weights[1].to(memory_format=torch.channels_last)
    weights[4][3] = 7  # a constant filter
    return weights


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_standardizing_together_gives_the_same_results(dtype):
    weights = filters(dtype)
    for weight, (standardized, factors) in pairs(weights, standardize_together(weights, 1e-3)):
        expected, expected_factors = standardize_filters(weight, 1e-3)
        torch.testing.assert_close(standardized, expected)
        torch.testing.assert_close(factors, expected_factors)
        assert standardized.stride() == weight.stride()
        assert all(row.is_contiguous() for row in factors)  # GroupNorm's backward pass needs it
        grad = torch.randn_like(standardized)
        torch.testing.assert_close(filter_gradient(grad, standardized, factors),
                                   filter_gradient(grad, expected, expected_factors))


@pytest.mark.parametrize('unbiased', [True, False])
def test_gradient_equals_that_of_the_formula(unbiased):
    for weight in filters(torch.float64)[:4]:
        grad = torch.randn_like(weight)
        standardized, factors = standardize_filters(weight, 1e-3, unbiased)
        leaf = weight.clone().requires_grad_()
        rows = leaf.flatten(1)
        formula = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, correction=int(unbiased), keepdim=True) + 1e-3)
        expected, = torch.autograd.grad(formula.view_as(leaf), leaf, grad)
        torch.testing.assert_close(filter_gradient(grad, standardized, factors), expected)


def test_out_is_written_to():
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    out = torch.empty_like(weight)
    assert standardize_filters(weight, 1e-5, out=out)[0] is out
    torch.testing.assert_close(out, standardize_weight(weight))

"""The optional C++ kernels: that they are used, right, and not needed."""

import copy

import pytest
import torch
from torch import nn

from mmws import ConvWS2d, convert_
from mmws.ops import cpp_kernels, kernels
from mmws.ops.kernels import filter_gradient, standardize_filters
from mmws.ops.standardize import _formula
from mmws.ops.torch_compat import address
from tests.helpers.cpp import can_compile
from tests.helpers.versions import needs_cache

needs_compiler = pytest.mark.skipif(not can_compile(), reason='needs a C++ compiler, ninja and torch >= 2.1')


@pytest.fixture
def cpp(monkeypatch):
    """Switch the C++ kernels on, and let torch's operators fail."""
    monkeypatch.setattr(cpp_kernels, 'enabled', True)
    monkeypatch.setattr(kernels, '_normalize', None)
    monkeypatch.setattr(torch.ops.aten, 'native_group_norm_backward', None)


@needs_compiler
@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('shape', [(3, 2), (5, 31), (64, 3, 7, 7), (7, 33, 1, 1), (96, 64, 3, 3)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_formula_and_its_gradient(cpp, shape, dtype, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weight, grad = 0.1 * torch.randn(shape, dtype=dtype) + 5, torch.randn(shape, dtype=dtype)
        standardized, factors = standardize_filters(weight, 1e-3)
        gradient = filter_gradient(grad, standardized, factors)
    finally:
        torch.set_num_threads(before)
    exact = weight.double().requires_grad_()
    expected = _formula(exact, 1e-3, unbiased=True)
    expected_gradient, = torch.autograd.grad(expected, exact, grad.double())
    rounding = 5 / 0.1 * torch.finfo(dtype).eps  # relative to the deviation
    torch.testing.assert_close(standardized.double(), expected.detach(), rtol=0, atol=20 * rounding)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0,
                               atol=20 * rounding * expected_gradient.abs().max().item())


@needs_compiler
def test_constant_and_not_finite_filters(cpp):
    weight = torch.full((4, 27), 7.1)
    weight[1], weight[2, 3] = torch.randn(27), float('nan')
    weight[3] *= 1e30
    weight[3, 0] = float('inf')
    standardized, factors = standardize_filters(weight, 1e-5)
    assert torch.equal(standardized[0], torch.zeros(27))
    assert standardized[1].std().sub(1).abs() < 1e-4
    assert standardized[2:].isnan().all()
    gradient = filter_gradient(torch.randn(4, 27), standardized, factors)
    assert gradient[:2].isfinite().all()
    assert gradient[2:].isnan().all()


@needs_compiler
@needs_cache
def test_a_network_trains_the_same_and_its_weights_are_not_copied(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    convert_(net)
    losses, x = [], torch.randn(2, 3, 9, 9)
    for enabled in (False, True):
        monkeypatch.setattr(cpp_kernels, 'enabled', enabled)
        twin = copy.deepcopy(net)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        for _ in range(3):
            loss = twin(x).square().mean()
            place = address(twin[0].weight)
            optimizer.zero_grad()
            loss.backward()
            assert address(twin[0].weight) == place
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize('programs', [True, False], ids=['a compiler that fails', 'no program'])
def test_without_a_compiler_there_is_a_warning_and_the_result(monkeypatch, tmp_path, programs):
    monkeypatch.setattr(cpp_kernels, 'enabled', True)
    monkeypatch.setattr(cpp_kernels, 'NAME', 'mmws_cpp_missing')
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    monkeypatch.setenv('CXX', 'false')
    if not programs:
        monkeypatch.setenv('PATH', '')
        monkeypatch.setattr('sysconfig.get_path', lambda name: '')
    cpp_kernels._build.cache_clear()
    layer = ConvWS2d(3, 4, 3)
    try:
        with pytest.warns(UserWarning, match=r"MMWS_CPP=1: the C\+\+ kernels cannot be built, so torch's operators"):
            weight = layer.standardized_weight()
    finally:
        cpp_kernels._build.cache_clear()
    torch.testing.assert_close(weight, _formula(layer.weight, 1e-5, unbiased=True))


def test_they_are_off_unless_the_variable_is_set():
    assert not cpp_kernels.enabled

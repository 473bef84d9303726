"""The optional C++ kernels: that they are used, right, and not needed."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmws import ConvWS2d, convert_
from mmws.ops import cpp_kernels, kernels
from mmws.ops.kernels import filter_gradient, standardize_filters
from mmws.ops.standardize import _formula
from mmws.ops.torch_compat import address
from tests.helpers.commands import REPOSITORY
from tests.helpers.cpp import can_compile
from tests.helpers.versions import needs_cache

needs_compiler = pytest.mark.skipif(not can_compile(), reason='needs a C++ compiler, ninja and torch >= 2.1')


@pytest.fixture
def cpp(monkeypatch):
    """Switch the C++ kernels on, and let torch's operators fail."""
    assert cpp_kernels.build() is not None
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
    weight = torch.randn(5, 27)
    weight[0], weight[1] = 7.1, 1e25 * weight[1]
    weight[3, 3], weight[4, 0] = float('nan'), float('inf')
    standardized, factors = standardize_filters(weight, 1e-5)
    assert torch.equal(standardized[0], torch.zeros(27))
    torch.testing.assert_close(standardized[1:3].std(1), torch.ones(2))
    assert standardized[3:].isnan().all()
    gradient = filter_gradient(torch.randn(5, 27), standardized, factors)
    assert gradient[:3].isfinite().all()
    assert gradient[3:].isnan().all()


@needs_compiler
def test_a_write_to_the_output_is_seen_by_autograd(cpp):
    out, x = torch.empty(4, 27), torch.ones(4, 27, requires_grad=True)
    standardize_filters(torch.randn(4, 27), 1e-5, out=out)
    loss = (x * out).sum()
    standardize_filters(torch.randn(4, 27), 1e-5, out=out)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()
    with torch.inference_mode():
        inferred = torch.empty(4, 27)
        assert standardize_filters(torch.randn(4, 27), 1e-5, out=inferred)[0] is inferred


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
    cpp_kernels.build.cache_clear()
    layer = ConvWS2d(3, 4, 3)
    try:
        with pytest.warns(UserWarning, match=r"MMWS_CPP=1: the C\+\+ kernels cannot be built, so torch's operators"):
            weight = layer.standardized_weight()
    finally:
        cpp_kernels.build.cache_clear()
    torch.testing.assert_close(weight, _formula(layer.weight, 1e-5, unbiased=True))


@pytest.mark.parametrize(('value', 'enabled'), [('', 'False'), ('1', 'True')])
def test_the_variable_switches_them_on(value, enabled):
    code = 'from mmws.ops import cpp_kernels; print(cpp_kernels.enabled)'
    run = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, env={**os.environ, 'MMWS_CPP': value},
                         capture_output=True, text=True, check=True)
    assert run.stdout == f'{enabled}\n'

"""Train in lower precision; standardize filters of any size."""

import math
from itertools import product

import pytest
import torch

from mmws import standardize_weight
from tests.helpers.authors import authors
from tests.trust.demo import final_loss, records, train, write_config

STEPS, LAST = 200, 50
WRAPPERS = {'float32': {}, 'bfloat16': {'dtype': 'bfloat16'}, 'float16': {'dtype': 'float16'}}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('numbers')


def test_two_hundred_steps_of_the_demo_under_autocast(folder, record_property):
    config = write_config(folder, STEPS, STEPS)
    ends = {}
    for name, options in WRAPPERS.items():
        arguments = [f'optim_wrapper.{key}={value}' for key, value in options.items()]
        if arguments:
            arguments = ['--cfg-options', 'optim_wrapper.type=CpuAmpOptimWrapper', *arguments]
        assert train(config, name, *arguments).wait() == 0
        lines = records(folder / name)
        losses = [line['loss'] for line in lines if 'step' in line]
        assert len(losses) == STEPS
        assert all(map(math.isfinite, losses))
        ends[name] = final_loss(lines, LAST)
    for name in ends:
        kernels = '' if name == 'float32' else ' (NMS and RoIAlign in float32: mmcv has only these on CPU)'
        record_property(f'{name}, {STEPS} steps of the demo{kernels}: mean loss over the last {LAST} steps; NaN losses',
                        f'{ends[name]:.4f}, {ends[name] / ends["float32"] - 1:+.1%} of float32; no NaN')
    for name in ends:
        assert abs(ends[name] / ends['float32'] - 1) < 0.05


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_filters_of_any_size(dtype, record_property):
    worst, cases = {'value': 0.0, 'gradient': 0.0}, 0
    for std, fan_in, eps in product((1e-8, 1e-4, 1, 1e4), (2, 9, 64, 4608), (1e-30, 1e-10, 1e-5, 1, 1e10)):
        torch.manual_seed(0)
        weight = (torch.randn(64, fan_in) * std).to(dtype).requires_grad_()
        weight64 = weight.detach().double().requires_grad_()
        if not weight64.std(1).min():
            continue  # underflow to a constant filter, which `make test` covers
        upstream = torch.randn(64, fan_in).to(dtype)
        (output, gradient), (exact, exact_gradient) = (
            (out, torch.autograd.grad(out, leaf, upstream.to(out))[0])
            for out, leaf in ((standardize_weight(weight, eps), weight), (authors(weight64, eps), weight64)))
        spread = weight64.std(1, keepdim=True)
        size = upstream.double().norm(dim=1, keepdim=True) / (spread + eps)
        if size.max() > torch.finfo(dtype).max:
            continue  # overflow of the gradient
        cases += 1
        conditioning = 1 + weight64.mean(1, keepdim=True).abs() / spread  # large where the weights are nearly equal
        assert output.isfinite().all()
        assert gradient.isfinite().all()
        errors = {'value': (output - exact, exact.abs().max()), 'gradient': (gradient - exact_gradient, size)}
        for key, (error, scale) in errors.items():
            scale = (scale * conditioning).clamp(min=torch.finfo(dtype).tiny)
            worst[key] = max(worst[key], float((error.abs() / scale).max()))
    name, step = str(dtype)[len('torch.'):], torch.finfo(dtype).eps
    record_property(
        f'{name}: {cases} triples of std 1e-8 to 1e4, fan-in 2 to 4608, eps 1e-30 to 1e10: largest relative '
        'error against float64, divided by the conditioning 1 + abs(mean) / std',
        ', '.join(f'{key} {value:.1e}' for key, value in worst.items()) + f' (machine epsilon {step:.0e})')
    assert worst['value'] < 8 * step
    assert worst['gradient'] < 8 * step

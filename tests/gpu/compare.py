"""What the checks share: the expected values, the comparison, small networks and a training step.

The expected values are those of the authors' formula, in float64 and by autograd, without the code of mmws.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmws import ConvTransposeWS2d, ConvWS2d
from tests.gpu.networks import ResNet

__all__ = ['assert_close', 'assert_fresh', 'formula', 'images', 'layer', 'new_values', 'small_net', 'train',
           'two_layers']


def formula(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the standardized weight by the authors' formula, and the gradient of the sum of its cubes."""
    raw = conv.weight.detach().double().requires_grad_()
    rows = (raw.transpose(0, 1) if isinstance(conv, ConvTransposeWS2d) else raw).flatten(1)
    mean, std = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
    axis = 1 if isinstance(conv, ConvTransposeWS2d) else 0
    shape = [-1 if dimension == axis else 1 for dimension in range(raw.dim())]
    standardized = (raw - mean.view(shape)) / (std.view(shape) + conv.eps)
    return standardized.detach(), torch.autograd.grad(standardized.pow(3).sum(), raw)[0]


def assert_fresh(net: nn.Module) -> None:
    """Assert that each layer has the standardized form of its weight as it is now, and its gradient."""
    for name, conv in net.named_modules():
        if isinstance(conv, (ConvWS2d, ConvTransposeWS2d)):
            expected, gradient = formula(conv)
            with torch.no_grad():
                assert_close(conv.standardized_weight(), expected, f'the cached weight of {name or "the layer"}')
            trained = conv.standardized_weight()
            assert_close(trained, expected, f'the weight of {name or "the layer"} with a gradient')
            found = torch.autograd.grad(trained.double().pow(3).sum(), conv.weight)[0]
            assert_close(found, gradient, f'the gradient of {name or "the layer"}')


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = 2e-4) -> None:
    """Assert that the largest error is at most ``tolerance`` times the largest value."""
    error = (found.double() - expected.double()).abs().max().item()
    limit = tolerance * max(expected.double().abs().max().item(), 1e-6)
    assert error <= limit, f'{what} is wrong by {error:.3g}, expected at most {limit:.3g}'


def layer(device: str, **options: Any) -> ConvWS2d:
    """Return a layer with a filled cache."""
    torch.manual_seed(0)
    conv = ConvWS2d(16, 32, 3, **options).to(device)
    assert_fresh(conv)
    return conv


def small_net(device: str) -> ResNet:
    """Return a network with a filled cache."""
    torch.manual_seed(0)
    net = ResNet(8, ConvWS2d, width=16).to(device)
    assert_fresh(net)
    return net


def two_layers(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(ConvWS2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), ConvWS2d(16, 16, 3),
                         nn.GroupNorm(4, 16)).to(device)


def images(device: str, batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 3, 64, 64).to(device)


def train(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Take one step; without an optimizer write the weights by hand, as some trainers do."""
    net(x).square().mean().backward()
    if optimizer is not None:
        optimizer.step()
    for parameter in net.parameters():
        if optimizer is None:
            parameter.data.add_(parameter.grad, alpha=-0.1)
        parameter.grad = None


def new_values(conv: nn.Module) -> Tensor:
    return torch.randn_like(conv.weight)

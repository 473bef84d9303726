"""Standardized convolutions of other implementations, and bounds of the cost. They need torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmws.layers.conv import ConvWS2d
from mmws.ops.standardize import standardize_weight
from mmws.ops.torch_compat import version

__all__ = ['AuthorsConv', 'CopyConv', 'MmcvConv', 'ParametrizedConv', 'TimmConv', 'use_convs_']


def use_convs_(net: nn.Module, kind: type[nn.Conv2d]) -> None:
    """Turn each ``ConvWS2d`` of ``net`` into a convolution of another class, in place.

    Example:
        >>> net = nn.Sequential(ConvWS2d(3, 8, 3), nn.GroupNorm(4, 8))
        >>> use_convs_(net, TimmConv)
        >>> type(net[0]).__name__
        'TimmConv'
    """
    for module in [module for module in net.modules() if type(module) is ConvWS2d]:
        module.__class__ = kind  # type: ignore[assignment]
        if kind is ParametrizedConv:
            parametrize.register_parametrization(module, 'weight', _Standardize())


class TimmConv(nn.Conv2d):
    """timm's ``StdConv2d``: the kernel of BatchNorm applied to the filters, biased and with eps inside the root."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True,
                                          momentum=0.0, eps=self.eps)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)  # type: ignore[no-any-return]


class AuthorsConv(nn.Conv2d):
    """The authors' operations in their order (``layers.py`` of joe-siyuan-qiao/pytorch-classification)."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        std = weight.view(weight.size(0), -1).std(1).view(-1, 1, 1, 1) + self.eps
        return self._conv_forward(x, weight / std.expand_as(weight), self.bias)  # type: ignore[no-any-return]


class MmcvConv(nn.Conv2d):
    """mmcv's formula in its operations: ``conv_ws_2d`` of ``mmcv/cnn/bricks/conv_ws.py``."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.view(len(self.weight), -1)
        mean = rows.mean(dim=1, keepdim=True).view(-1, 1, 1, 1)
        std = rows.std(dim=1, keepdim=True).view(-1, 1, 1, 1)
        return self._conv_forward(x, (self.weight - mean) / (std + self.eps), self.bias)  # type: ignore[no-any-return]


class ParametrizedConv(nn.Conv2d):
    """Its weight is parametrized with ``torch.nn.utils.parametrize``."""


class CopyConv(nn.Conv2d):
    """Lower bound for a layer that caches its weight: it copies the weight once forward and once backward."""

    def forward(self, x: Tensor) -> Tensor:
        if vars(self).get('version') != version(self.weight):
            cached = vars(self).setdefault('cached', torch.empty_like(self.weight, requires_grad=False))
            vars(self).update(version=version(self.weight), cached=cached.copy_(self.weight.detach()))
        weight: Tensor = _Copy.apply(self.weight, vars(self)['cached'])  # type: ignore[no-untyped-call]
        return self._conv_forward(x, weight, self.bias)  # type: ignore[no-any-return]


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, cached: Tensor) -> Tensor:
        ctx.save_for_backward(cached)
        return cached.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # reads the cached weight as the gradient of WS does
        return torch.add(grad, *ctx.saved_tensors, alpha=1e-9), None


class _Standardize(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return standardize_weight(weight)

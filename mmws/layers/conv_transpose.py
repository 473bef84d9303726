"""Transposed convolutions that standardize their weight."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmws.layers.conv import WeightStandardized
from mmws.layers.fx_leaf import fx_leaf
from mmws.layers.weight_cache import WeightCache

__all__ = ['ConvTransposeWS1d', 'ConvTransposeWS2d', 'ConvTransposeWS3d', 'TransposedStandardized']


class TransposedStandardized(WeightStandardized):
    """Mixin for a transposed convolution; a filter has in_channels / groups x kernel elements."""

    groups: int  # absent in some classes of a user: 1

    def swap_layout(self, weight: Tensor) -> Tensor:
        return _swap_channels(weight, getattr(self, 'groups', 1))

    def _standardized(self, shared: bool) -> Tensor:
        return self.swap_layout(super()._standardized(shared))

    def prepare_compiled(self) -> None:
        """Do nothing: a graph computes the filters from the weight at each call, so there is nothing to keep."""

    def _make_cache(self) -> WeightCache:
        return WeightCache(partial(_swap_channels, groups=getattr(self, 'groups', 1)))

    @fx_leaf
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        dimensions = self.weight.dim() - 2
        convolve: Any = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[dimensions - 1]
        output_padding = self._output_padding(  # type: ignore[operator]
            input, output_size, self.stride, self.padding, self.kernel_size, dimensions, self.dilation)
        return self.call_with_weight(lambda standardized: convolve(  # type: ignore[no-any-return]
            input, standardized, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation))


def _swap_channels(weight: Tensor, groups: int) -> Tensor:
    """Reshape (inputs, outputs / groups, ...) to (outputs, inputs / groups, ...), or back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # type: ignore[no-any-return,no-untyped-call]


class ConvTransposeWS1d(TransposedStandardized, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` that standardizes its filters before use. See :class:`ConvTransposeWS2d`.

    Example:
        >>> ConvTransposeWS1d(4, 8, 2, stride=2)(torch.randn(2, 4, 10)).shape
        torch.Size([2, 8, 20])
    """


class ConvTransposeWS2d(TransposedStandardized, nn.ConvTranspose2d):
    r"""``nn.ConvTranspose2d`` that standardizes its filters before use: mean 0, std 1 over fan-in.

    .. math:: \hat w_{:,o} = \frac{w_{:,o} - \mathrm{mean}(w_{:,o})}{\mathrm{std}(w_{:,o}) + \epsilon}

    where the filter :math:`w_{:,o}` has all in_channels / groups x kernel elements of output channel :math:`o`.
    Arguments, parameters and initialization are the same as for ``nn.ConvTranspose2d``; ``eps`` (keyword only) is added
    to the standard deviation. The formula is that of :func:`mmws.standardize_weight`, arXiv 1903.10520. The authors'
    code has no standardized transposed convolution.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H', W').

    Raises:
        ValueError: if the fan-in, in_channels / groups x kernel elements, is below 2.

    Example:
        >>> ConvTransposeWS2d(4, 8, 2, stride=2)(torch.randn(2, 4, 10, 10)).shape
        torch.Size([2, 8, 20, 20])
    """


class ConvTransposeWS3d(TransposedStandardized, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` that standardizes its filters before use. See :class:`ConvTransposeWS2d`.

    Example:
        >>> ConvTransposeWS3d(4, 8, 2, stride=2)(torch.randn(2, 4, 5, 6, 7)).shape
        torch.Size([2, 8, 10, 12, 14])
    """

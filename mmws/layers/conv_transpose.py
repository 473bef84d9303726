"""Transposed convolutions that standardize their weight. Imports torch alone."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from mmws.layers.conv import WeightStandardized
from mmws.layers.weight_cache import WeightCache

__all__ = ['ConvTransposeWS1d', 'ConvTransposeWS2d', 'ConvTransposeWS3d']


class _Transposed(WeightStandardized):
    """A filter is what makes one output channel: in_channels / groups x kernel, along the weight's first axis."""

    def filters(self) -> Tensor:
        return _swap_channels(self.weight, self.groups)  # type: ignore[arg-type]

    def standardized_weight(self) -> Tensor:
        return _swap_channels(super().standardized_weight(), self.groups)  # type: ignore[arg-type]

    def _make_cache(self) -> WeightCache:
        return WeightCache(partial(_swap_channels, groups=self.groups))  # type: ignore[arg-type]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        conv: Any = self
        dimensions = conv.weight.dim() - 2
        convolve: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
        output_padding = conv._output_padding(
            input, output_size, conv.stride, conv.padding, conv.kernel_size, dimensions, conv.dilation)
        output: Tensor = convolve[dimensions - 1](input, self.standardized_weight(), conv.bias, conv.stride,
                                                  conv.padding, output_padding, conv.groups, conv.dilation)
        return output


def _swap_channels(weight: Tensor, groups: int) -> Tensor:
    """(inputs, outputs / groups, ...) to (outputs, inputs / groups, ...), and back."""
    swapped: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # type: ignore[no-untyped-call]
    return swapped


class ConvTransposeWS1d(_Transposed, nn.ConvTranspose1d):
    r"""``nn.ConvTranspose1d`` whose filters are standardized before use: mean 0, std 1 over fan-in.

    Arguments, parameters and initialization are those of ``nn.ConvTranspose1d``, and ``eps`` (keyword only).
    See :class:`ConvTransposeWS2d`.

    Example:
        >>> import torch
        >>> ConvTransposeWS1d(4, 8, 2, stride=2)(torch.randn(2, 4, 10)).shape
        torch.Size([2, 8, 20])
    """


class ConvTransposeWS2d(_Transposed, nn.ConvTranspose2d):
    r"""``nn.ConvTranspose2d`` whose filters are standardized before use: mean 0, std 1 over fan-in.

    .. math:: \hat w_{:,o} = \frac{w_{:,o} - \mathrm{mean}(w_{:,o})}{\mathrm{std}(w_{:,o}) + \epsilon}

    where :math:`w_{:,o}` is all that makes output channel :math:`o`: in_channels / groups x kernel elements.
    Arguments, parameters and initialization are those of ``nn.ConvTranspose2d``, and ``eps`` (keyword only).
    The authors have none (their deconvolution feeds no norm); the formula is that of
    :func:`mmws.standardize_weight`, arXiv 1903.10520.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H', W').

    Raises:
        ValueError: if in_channels / groups x kernel height x kernel width is below 2.

    Example:
        >>> import torch
        >>> ConvTransposeWS2d(4, 8, 2, stride=2)(torch.randn(2, 4, 10, 10)).shape
        torch.Size([2, 8, 20, 20])
    """


class ConvTransposeWS3d(_Transposed, nn.ConvTranspose3d):
    r"""``nn.ConvTranspose3d`` whose filters are standardized before use: mean 0, std 1 over fan-in.

    Arguments, parameters and initialization are those of ``nn.ConvTranspose3d``, and ``eps`` (keyword only).
    See :class:`ConvTransposeWS2d`.

    Example:
        >>> import torch
        >>> ConvTransposeWS3d(4, 8, 2, stride=2)(torch.randn(2, 4, 5, 6, 7)).shape
        torch.Size([2, 8, 10, 12, 14])
    """

"""Samples of activations at random positions, the same for the BatchNorm network and the converted one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ['Moments', 'at_positions', 'inputs_of_filters', 'moments', 'random_positions']


class Moments(NamedTuple):
    """Statistics of each channel, of shape (C,), and the number of values of a channel."""

    mean: Tensor
    variance: Tensor
    number: int

    def pooled(self, groups: int) -> Moments:
        """Return the statistics of ``groups`` equal groups of channels."""
        means, variances = self.mean.view(groups, -1), self.variance.view(groups, -1)
        mean = means.mean(1)
        variance = variances.mean(1) + (means - mean[:, None]).square().mean(1)
        return Moments(mean, variance, self.number * means.shape[1])

    def scaled(self, scale: Tensor, shift: Tensor) -> Moments:
        """Return the statistics of ``scale * x + shift``."""
        return Moments(self.mean * scale + shift, self.variance * scale.square(), self.number)

    def merged(self, other: Moments | None) -> Moments:
        """Return the statistics of the values of both."""
        if other is None:
            return self
        number = self.number + other.number
        share, distance = other.number / number, other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * distance.square()
        return Moments(self.mean + share * distance, variance, number)


def moments(x: Tensor) -> Moments:
    """Return the statistics of each channel of ``x``, of shape (N, C, \\*).

    Example:
        >>> moments(torch.tensor([[[1., 3.]], [[5., 7.]]]))
        Moments(mean=tensor([4.]), variance=tensor([5.]), number=4)
    """
    dims = [dim for dim in range(x.dim()) if dim != 1]
    mean = x.float().mean(dims)
    square = (x.float() - mean.view(-1, *[1] * (x.dim() - 2))).square_()
    return Moments(mean, square.mean(dims), x.numel() // x.shape[1])


def random_positions(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return about ``count`` positions of the map ``x``, (N, C, \\*), as flat indices of shape (N, positions)."""
    length = x[0, 0].numel()
    number = min(length, max(1, count // len(x)))
    drawn = [torch.randperm(length, generator=generator, device='cpu')[:number] for _ in range(len(x))]
    return torch.stack(drawn).to(x.device)


def at_positions(x: Tensor, positions: Tensor) -> Tensor:
    """Return the values of ``x``, (N, C, \\*), at ``positions``, of shape (N * positions, C)."""
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    index = positions.unsqueeze(1).expand(-1, flat.shape[1], -1)
    return flat.gather(2, index).transpose(1, 2).flatten(0, 1).float()


def inputs_of_filters(conv: nn.Conv2d, x: Tensor, positions: Tensor, width: int) -> Tensor:
    """Return the inputs of the filters of ``conv``, of shape (groups, N * positions, fan-in).

    Args:
        conv: a convolution over two dimensions.
        x: its input, (N, C, H, W).
        positions: flat indices in its output, (N, positions).
        width: of its output.
    """
    mode = 'constant' if conv.padding_mode == 'zeros' else conv.padding_mode
    x = functional.pad(x.float(), _padding(conv), mode)
    kernel = [torch.arange(size, device=x.device) * step for size, step in zip(conv.kernel_size, conv.dilation)]
    rows = (positions // width * conv.stride[0])[..., None, None] + kernel[0][:, None]
    columns = (positions % width * conv.stride[1])[..., None, None] + kernel[1]
    found = torch.stack([image[:, row, column] for image, row, column in zip(x, rows, columns)])
    found = found.reshape(len(x), conv.groups, -1, *found.shape[2:])  # N, groups, C / groups, positions, kernel
    return found.permute(1, 0, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def _padding(conv: nn.Conv2d) -> list[int]:
    """Return left, right, top and bottom padding."""
    if isinstance(conv.padding, str):
        totals = [step * (size - 1) if conv.padding == 'same' else 0
                  for size, step in zip(conv.kernel_size, conv.dilation)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(size, size) for size in conv.padding]
    return [size for side in reversed(sides) for size in side]

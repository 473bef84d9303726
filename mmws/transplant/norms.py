"""Affine parameters of one norm, fitted to the statistics that BatchNorm gave each channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmws.layers.batch_channel_norm import BatchChannelNorm
from mmws.layers.switchable_norm import SwitchableNorm
from mmws.ops.torch_compat import InstanceNorm
from mmws.transplant.sampling import Moments, moments

__all__ = ['NormFit', 'affine_of']


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel by a BatchNorm with running statistics.

    Example:
        >>> affine_of(nn.BatchNorm2d(2, eps=0))
        (tensor([1., 1.]), tensor([0., 0.]))
    """
    scale = (norm.running_var.detach().float() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().float()
    shift = -scale * norm.running_mean.float()
    return scale, shift if norm.bias is None else shift + norm.bias.detach().float()


class NormFit:
    r"""Fit of a norm's parameters to the BatchNorm that it replaced, over all calls of the norm in one pass.

    .. math:: \gamma = s \sqrt{\mathrm{var}(z) / \mathrm{var}(v)}, \qquad
        \beta = \mathrm{mean}(z) - \gamma\,\mathrm{mean}(v)

    with :math:`z` the output of the BatchNorm, :math:`v` the normalized input of the norm, and :math:`s` the sign of
    BatchNorm's scale. A norm with running statistics first gets those of its input. Batch-channel normalization has a
    parameter per group; they get the statistics of their groups.

    Args:
        norm: of the converted network.
    """

    def __init__(self, norm: nn.Module) -> None:
        self.norm: Any = norm
        self._inputs: Moments | None = None
        self._outputs: Moments | None = None
        self._targets: Moments | None = None

    def update_(self, x: Tensor, target: Moments, sign: Tensor) -> None:
        """Set the parameters for a call with the input ``x``; the BatchNorm's output had the moments ``target``."""
        norm = self.norm
        self._targets = target = target.merged(self._targets)
        if getattr(norm.bn if isinstance(norm, BatchChannelNorm) else norm, 'running_mean', None) is not None:
            self._inputs = moments(x).merged(self._inputs)
            self._set_statistics_(self._inputs, target, sign)
        if isinstance(norm, SwitchableNorm) and norm.weight is not None:
            norm.weight.fill_(1)
            norm.bias.zero_()
        self._outputs = found = moments(self._normalized(x)).merged(self._outputs)
        if norm.weight is None:
            return
        if isinstance(norm, BatchChannelNorm):
            found, target = found.pooled(norm.num_groups), target.pooled(norm.num_groups)
            sign = torch.ones_like(found.mean)
        ratio = target.variance / found.variance.clamp_min(norm.eps)
        scale = torch.where(found.variance > norm.eps ** 2, ratio, torch.ones_like(ratio)).sqrt() * sign
        norm.weight.copy_(scale)
        norm.bias.copy_(target.mean - scale * found.mean)

    def output(self, x: Tensor) -> Tensor:
        """Return the output of the norm before its activation."""
        weight, bias = self.norm.weight, self.norm.bias
        if isinstance(self.norm, SwitchableNorm) or weight is None:
            return self._normalized(x)
        if isinstance(self.norm, BatchChannelNorm):
            each = self.norm.num_features // self.norm.num_groups
            weight, bias = weight.repeat_interleave(each), bias.repeat_interleave(each)
        shape = (-1, *[1] * (x.dim() - 2))
        output: Tensor = self._normalized(x) * weight.view(shape) + bias.view(shape)
        return output

    def _set_statistics_(self, found: Moments, target: Moments, sign: Tensor) -> None:
        statistics = self.norm
        if isinstance(self.norm, BatchChannelNorm):
            statistics = self.norm.bn
            if statistics.weight is not None:
                statistics.weight.copy_(target.variance.sqrt() * sign)
                statistics.bias.copy_(target.mean)
        statistics.running_mean.copy_(found.mean)
        statistics.running_var.copy_(found.variance)

    def _normalized(self, x: Tensor) -> Tensor:
        """Return the output of the norm before its affine map and its activation; of SwitchableNorm after the map."""
        norm = self.norm
        if isinstance(norm, BatchChannelNorm):
            return functional.group_norm(norm.bn(x), norm.num_groups, eps=norm.eps)
        if isinstance(norm, nn.GroupNorm):
            return functional.group_norm(x, norm.num_groups, eps=norm.eps)
        if isinstance(norm, InstanceNorm):
            return functional.instance_norm(x, eps=norm.eps)
        if isinstance(norm, SwitchableNorm):
            output: Tensor = norm.forward(x)
            return output
        return functional.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)

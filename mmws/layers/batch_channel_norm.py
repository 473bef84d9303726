"""Batch-channel normalization with statistics of the batch or running estimates."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmws.ops.torch_compat import BatchNorm, NormBase, is_compiling, recomputes

__all__ = ['BatchChannelNorm', 'EstimatedBatchChannelNorm', 'EstimatedBatchNorm', 'group_count']

_PASSES = 32  # at most, before one backward pass: a head shared by the levels of a pyramid runs five times


def group_count(channels: int, at_most: int = 32, pointwise: bool = False) -> int:
    """Return the largest divisor of ``channels`` that is at most ``at_most``.

    ``pointwise``: the feature map has one position per image. A group of one channel would then hold a single value,
    which has no variance. If each group would have one channel, there are fewer groups, of 8 channels or more where
    possible.

    Example:
        >>> group_count(64), group_count(48), group_count(20), group_count(37)
        (32, 24, 20, 1)
        >>> group_count(64, pointwise=True), group_count(32, pointwise=True)
        (32, 4)
    """
    groups = next(groups for groups in range(min(channels, at_most), 0, -1) if channels % groups == 0)
    return group_count(channels, max(channels // 8, 1)) if pointwise and groups == channels else groups


class _BatchNorm(BatchNorm):
    """``nn.BatchNorm`` for inputs of any dimension."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class EstimatedBatchNorm(NormBase):
    r"""Batch normalization by running estimates, also in training. They get no gradient.

    In training the batch of one process first updates the estimates, at the rate :math:`r` = ``momentum``:

    .. math:: \hat\sigma^2 \gets (1 - r)\,\hat\sigma^2 + r\,\mathrm{mean}((x - \hat\mu)^2), \qquad
        \hat\mu \gets (1 - r)\,\hat\mu + r\,\mathrm{mean}(x), \qquad
        y = \gamma \frac{x - \hat\mu}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta

    The variance uses the old estimate of the mean. If activation checkpointing runs the pass again, it gets the
    estimates of the first time and updates nothing. ``EstBN`` of joe-siyuan-qiao/Batch-Channel-Normalization,
    arXiv 1911.09738 and 1903.10520v2. The authors' rate is a buffer, ``estbn_moving_speed``, which starts at 0 and
    which their training code sets; here it is ``momentum``.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: rate of the estimates, as in ``nn.BatchNorm2d``.

    Shape:
        (N, num_features, \*) to the same.

    Example:
        >>> norm = EstimatedBatchNorm(1)
        >>> norm(torch.tensor([[[10.]]])).round(decimals=2), norm.running_mean, norm.running_var.round(decimals=2)
        (tensor([[[2.7300]]], grad_fn=<RoundBackward1>), tensor([1.]), tensor([10.9000]))
    """

    running_mean: Tensor
    running_var: Tensor
    _recent: deque[tuple[Tensor, ...]] | None = None  # batch mean, estimates: of the last passes

    def forward(self, x: Tensor) -> Tensor:
        # The backward pass reads copies, because the module may run again before it.
        mean, variance = self._estimate(x.detach()) if self.training else (
            self.running_mean.clone(), self.running_var.clone())
        return functional.batch_norm(x, mean, variance, self.weight, self.bias, training=False, eps=self.eps)

    def _estimate(self, x: Tensor) -> tuple[Tensor, ...]:
        per_channel = x.transpose(0, 1).flatten(1).to(self.running_mean)
        batch_mean = per_channel.mean(1)
        if recomputes() and self._recent:
            distances = torch.stack([recent[0] for recent in self._recent]) - batch_mean
            return self._recent[int(distances.abs().sum(1).argmin())][1:]
        rate: float = self.momentum  # type: ignore[assignment]
        self.running_var.lerp_((per_channel - self.running_mean.unsqueeze(1)).square_().mean(1), rate)
        self.running_mean.lerp_(batch_mean, rate)
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        estimates = self.running_mean.clone(), self.running_var.clone()
        if not is_compiling():
            self._recent = self._recent or deque(maxlen=_PASSES)
            self._recent.appendleft((batch_mean, *estimates))
        return estimates

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != '_recent'}


class BatchChannelNorm(nn.Module):
    r"""Batch normalization, then normalization over groups of channels, each with its own affine map.

    .. math:: \dot x = \gamma_c \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c, \qquad
        y = \gamma_g \frac{\dot x - \mu_{ng}}{\sqrt{\sigma_{ng}^2 + \epsilon}} + \beta_g

    The first step, ``bn``, uses the statistics of each channel :math:`c` over the batch (in eval mode the running
    statistics). The second uses those of each group :math:`g` of channels in an image :math:`n`. ``weight`` and
    ``bias`` are :math:`\gamma_g, \beta_g`, one number per group and not per channel as in GroupNorm: the authors'
    results were made this way (``BCNorm`` of joe-siyuan-qiao/Batch-Channel-Normalization, and its ``imagenet`` and
    ``DeepLabV3``). Batch-Channel Normalization, arXiv 1911.09738 and 1903.10520v2.

    Args:
        num_features: number of channels.
        eps: added to the variances.
        num_groups: upper bound of the number of groups, see :func:`group_count`.
        momentum: rate of the running statistics, as in ``nn.BatchNorm2d``.

    Shape:
        (N, num_features, \*) to the same.

    Raises:
        ValueError: in training, if a channel has a single value; use :class:`EstimatedBatchChannelNorm` instead.

    Example:
        >>> norm = BatchChannelNorm(48)
        >>> norm(torch.randn(2, 48, 5, 5)).shape, norm.weight.shape, norm.bn.weight.shape
        (torch.Size([2, 48, 5, 5]), torch.Size([24]), torch.Size([48]))
    """

    _abbr_ = 'bcn'  # mmcv reads it as the prefix of the norm's name
    _first: type[NormBase] = _BatchNorm

    def __init__(self, num_features: int, eps: float = 1e-5, num_groups: int = 32, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.num_groups = num_features, eps, group_count(num_features, num_groups)
        self.weight = nn.Parameter(torch.ones(self.num_groups))
        self.bias = nn.Parameter(torch.zeros(self.num_groups))
        self.bn = self._first(num_features, eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.num_features // self.num_groups
        normalized = self._recomputed(x) if recomputes() else self.bn(x)
        return functional.group_norm(normalized, self.num_groups, self.weight.repeat_interleave(channels),
                                     self.bias.repeat_interleave(channels), self.eps)

    def _recomputed(self, x: Tensor) -> Tensor:
        """Return ``bn(x)`` and leave the statistics as they are."""
        buffers, self.bn._buffers = self.bn._buffers, copy.deepcopy(self.bn._buffers)
        try:
            return self.bn(x)  # type: ignore[no-any-return]
        finally:
            self.bn._buffers = buffers

    def extra_repr(self) -> str:
        return f'{self.num_groups}, {self.num_features}, eps={self.eps:g}'


class EstimatedBatchChannelNorm(BatchChannelNorm):
    r""":class:`BatchChannelNorm` for micro-batches: ``bn`` is an :class:`EstimatedBatchNorm`.

    A channel may have a single value. arXiv 1911.09738 and 1903.10520v2.

    Args:
        num_features: number of channels.
        eps: added to the variances.
        num_groups: upper bound of the number of groups, see :func:`group_count`.
        momentum: rate of the running estimates.

    Shape:
        (N, num_features, \*) to the same.

    Example:
        >>> EstimatedBatchChannelNorm(16, num_groups=4)(torch.randn(1, 16, 1, 1)).shape
        torch.Size([1, 16, 1, 1])
    """

    _abbr_ = 'estbn'  # mmcv reads it as the prefix of the norm's name
    _first = EstimatedBatchNorm

"""Switchable Norm: a learned mixture of three normalizations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmws.layers.fx_leaf import fx_leaf
from mmws.ops.standardize import HALF
from mmws.ops.torch_compat import recomputes

__all__ = ['SwitchableNorm']


class SwitchableNorm(nn.Module):
    r"""Normalize by a mixture of the statistics of instance, layer and batch normalization.

    .. math:: y = \gamma \frac{x - \sum_k \omega_k \mu_k}{\sqrt{\sum_k \omega'_k \sigma_k^2 + \epsilon}} + \beta,
        \qquad \omega = \mathrm{softmax}(\lambda), \quad \omega' = \mathrm{softmax}(\lambda')

    where :math:`k` is one of instance (per image and channel), layer (per image) and batch (per channel);
    :math:`\lambda` is ``mean_weight`` and :math:`\lambda'` is ``var_weight``, three numbers each, initialized to 1.
    The batch is that of one process. In eval mode moving averages from training replace its statistics.

    Switchable Norm, arXiv 1806.10779. The outputs match ``devkit/ops/switchable_norm.py`` of
    switchablenorms/Switchable-Normalization, which uses the unbiased variance of an instance. For one position, this
    variance is NaN in the authors' code and 0 here. The moving averages start at 0 and 1, as in torch; the
    authors' both start at 0.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of the old moving average, as in the authors' code: one minus the momentum of torch.

    Shape:
        (N, num_features, \*) to the same, any floating dtype. For float16 and bfloat16 the statistics are in float32.

    Example:
        >>> SwitchableNorm(8)(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    _abbr_ = 'sn'  # mmcv reads it as the prefix of the norm's name
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.9) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        positions = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        positions = positions.float() if x.dtype in HALF else positions
        variance, mean = torch.var_mean(positions, dim=2, correction=int(positions.shape[2] > 1))
        square = variance + mean ** 2
        layer_mean = mean.mean(1, keepdim=True)
        layer_variance = square.mean(1, keepdim=True) - layer_mean ** 2
        batch_mean, batch_variance = self._batch_statistics(mean, square)
        weights, var_weights = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = weights[0] * mean + weights[1] * layer_mean + weights[2] * batch_mean
        variance = var_weights[0] * variance + var_weights[1] * layer_variance + var_weights[2] * batch_variance
        return self._scale(x.to(positions), mean, (variance + self.eps).rsqrt()).to(x.dtype)

    def _batch_statistics(self, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.running_mean, self.running_var
        batch_mean = mean.mean(0)
        batch_variance = square.mean(0) - batch_mean ** 2
        if not recomputes():
            self.running_mean.lerp_(batch_mean.detach().to(self.running_mean), 1 - self.momentum)
            self.running_var.lerp_(batch_variance.detach().to(self.running_var), 1 - self.momentum)
        return batch_mean, batch_variance

    def _scale(self, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Apply statistics and affine parameters as one factor and one term per image and channel."""
        shift = -mean * scale
        if self.weight is not None:  # None, as for affine=False in torch
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        per_channel = (*scale.shape, *[1] * (x.dim() - 2))
        return torch.addcmul(shift.view(per_channel), x, scale.view(per_channel))

    def extra_repr(self) -> str:
        return f'{self.num_features}, eps={self.eps:g}, momentum={self.momentum:g}'

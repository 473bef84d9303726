"""Filters of one convolution, fitted by ridge regression to the outputs of the BatchNorm network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['RIDGES', 'FittedFilters', 'correlation', 'fit_filters', 'standardization_loss']

RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Candidates for the strength of the ridge, in units of the mean variance of an input."""


class FittedFilters(NamedTuple):
    """Filters (groups, filters, fan-in), and the strength of the ridge; None if the old filters fit best."""

    filters: Tensor
    ridge: float | None


def fit_filters(inputs: Tensor, targets: Tensor, filters: Tensor, centred: bool, held_out: Tensor) -> FittedFilters:
    r"""Fit filters to targets by ridge regression towards the old filters.

    .. math:: \min_w \; \lVert z - X w \rVert^2 / n + \lambda \lVert w - w_0 \rVert^2
        \quad \text{with } \textstyle\sum_i w_i = 0 \text{ if centred}

    with the columns of :math:`X` and :math:`z` centred. A filter with mean 0 loses nothing when it is standardized:
    only its scale changes. The strength :math:`\lambda` is the candidate of :data:`RIDGES` with the best fit on the
    samples held out, if that is better than the fit of the old filters.

    Args:
        inputs: the input of each filter, :math:`X`, of shape (groups, n, fan-in).
        targets: :math:`z`, of shape (groups, n, filters).
        filters: the old filters :math:`w_0`, of shape (groups, filters, fan-in), in the scale of the targets.
        centred: whether each filter must have mean 0.
        held_out: bool tensor of shape (n,); with none held out, the strength is 1.

    Example:
        >>> x = torch.randn(1, 500, 4, generator=torch.Generator().manual_seed(0))
        >>> true = torch.tensor([[[1., -1., 2., -2.]]])
        >>> fitted = fit_filters(x, x @ true.mT, torch.zeros(1, 1, 4), True, torch.arange(500) % 4 == 3)
        >>> (fitted.filters - true).abs().max() < 0.05, fitted.ridge
        (tensor(True), 0.01)
    """
    old = filters - filters.mean(2, keepdim=True) if centred else filters
    ridge: float | None = 1.0
    if held_out.any() and not held_out.all():
        part = _Regression(inputs[:, ~held_out], targets[:, ~held_out], filters, centred)
        tests, expected = inputs[:, held_out], targets[:, held_out]
        fits: dict[float | None, float] = {
            None: float(correlation(tests @ old.mT, expected)),
            **{each: float(correlation(tests @ part.solve(each).mT, expected)) for each in RIDGES}}
        ridge = max(fits, key=lambda each: fits[each])
        del part
    if ridge is None:
        return FittedFilters(old, None)
    return FittedFilters(_Regression(inputs, targets, filters, centred).solve(ridge), ridge)


def standardization_loss(inputs: Tensor, filters: Tensor) -> float:
    """Return the share of the outputs' variance that the means of the filters carry, which standardization removes.

    Shapes as in :func:`fit_filters`. The two parts of an output, by the mean and by the rest, count as independent.

    Example:
        >>> standardization_loss(torch.eye(4)[None], torch.ones(1, 2, 4) + torch.tensor([[[1.], [2.]]]))
        0.0
    """
    mean = filters.mean(2, keepdim=True)
    removed = (inputs @ mean.expand_as(filters).mT).var(1).sum()
    kept = (inputs @ (filters - mean).mT).var(1).sum()
    return float(removed / (removed + kept).clamp_min(torch.finfo(removed.dtype).tiny))


def correlation(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared correlation of outputs and targets, (\\*, n, channels), averaged over the channels.

    The variances of the targets are the weights. A negative correlation counts as 0.

    Example:
        >>> x = torch.tensor([[1.], [2.], [4.]])
        >>> correlation(3 * x + 1, x).round(decimals=4), correlation(-x, x)
        (tensor(1.), tensor(0.))
    """
    outputs, targets = outputs - outputs.mean(-2, keepdim=True), targets - targets.mean(-2, keepdim=True)
    tiny = torch.finfo(outputs.dtype).tiny
    common = (outputs * targets).sum(-2).clamp_min(0)
    return (common.square() / outputs.square().sum(-2).clamp_min(tiny)).sum() / targets.square().sum().clamp_min(tiny)


class _Regression:
    """Solutions of a ridge regression for several strengths, from matrices of the smaller of n and fan-in."""

    def __init__(self, inputs: Tensor, targets: Tensor, filters: Tensor, centred: bool) -> None:
        self.inputs, targets = inputs - inputs.mean(1, keepdim=True), targets - targets.mean(1, keepdim=True)
        self.filters, self.centred, number = filters, centred, inputs.shape[1]
        self.inputs = self.inputs / number ** 0.5
        self.residuals = targets / number ** 0.5 - self.inputs @ filters.mT
        self.dual = inputs.shape[2] > number
        self.products = self.inputs @ self.inputs.mT if self.dual else self.inputs.mT @ self.inputs
        variance = self.inputs.square().sum((1, 2)) / inputs.shape[2]
        self.variance = variance.clamp_min(1e-6 * float(variance.mean()) or 1.0)  # a group may have a dead input

    def solve(self, ridge: float) -> Tensor:
        """Return the filters."""
        level = ridge * self.variance[:, None, None]
        matrix = self.products.clone()
        matrix.diagonal(dim1=1, dim2=2).add_(level[:, 0])
        factor = torch.linalg.cholesky(matrix)
        if self.dual:
            change = self.inputs.mT @ torch.cholesky_solve(self.residuals, factor)
        else:
            change = torch.cholesky_solve(self.inputs.mT @ self.residuals, factor)
        filters = self.filters.mT + change
        if self.centred:
            direction = self._cheapest(level, factor)
            filters = filters - filters.sum(1, keepdim=True) * direction / direction.sum(1, keepdim=True)
        return filters.mT

    def _cheapest(self, level: Tensor, factor: Tensor) -> Tensor:
        """Return the change of a filter that changes its mean at the least cost, up to a factor."""
        ones = torch.ones_like(self.inputs[:, :1].mT)
        if self.dual:
            return ones - self.inputs.mT @ torch.cholesky_solve(self.inputs @ ones, factor)
        return level * torch.cholesky_solve(ones, factor)

"""Filters of one convolution, fitted by ridge regression to the outputs of the BatchNorm network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['RIDGES', 'FittedFilters', 'fit_filters', 'standardization_loss']

RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Candidates for the strength of the ridge, in units of the mean variance of an input."""


class FittedFilters(NamedTuple):
    """Filters (groups, filters, fan-in), and the strength of the ridge; infinite if the old filters fit best."""

    filters: Tensor
    ridge: float


def fit_filters(inputs: Tensor, targets: Tensor, filters: Tensor, centred: bool, held_out: Tensor) -> FittedFilters:
    r"""Fit filters to targets by ridge regression towards the old filters.

    .. math:: \min_w \; \lVert z - X w \rVert^2 / n + \lambda \lVert w - w_0 \rVert^2
        \quad \text{with } \textstyle\sum_i w_i = 0 \text{ if centred}

    with the columns of :math:`X` and :math:`z` centred. Standardization removes the mean of a filter. With the
    constraint there is none to remove: the regression has put its effect into weights that cost the least. The strength
    :math:`\lambda` is the candidate of :data:`RIDGES` with the best fit on the samples held out, or infinite.

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
    best, ridge = -1.0, 1.0
    if held_out.any() and not held_out.all():
        part = _Regression(inputs[:, ~held_out], targets[:, ~held_out], filters, centred)
        found = {candidate: part.solve(candidate) for candidate in RIDGES}
        for candidate, solution in {float('inf'): old, **found}.items():
            fit = _fit(inputs[:, held_out], targets[:, held_out], solution)
            if fit > best:
                best, ridge = fit, candidate
    solved = None if ridge == float('inf') else _Regression(inputs, targets, filters, centred).solve(ridge)
    return FittedFilters(old, float('inf')) if solved is None else FittedFilters(solved, ridge)


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


class _Regression:
    """Sums of a ridge regression, for solutions with several strengths."""

    def __init__(self, inputs: Tensor, targets: Tensor, filters: Tensor, centred: bool) -> None:
        inputs, targets = inputs - inputs.mean(1, keepdim=True), targets - targets.mean(1, keepdim=True)
        self.covariance = inputs.mT @ inputs / inputs.shape[1]
        self.correlation = inputs.mT @ targets / inputs.shape[1]
        self.filters, self.centred = filters, centred

    def solve(self, ridge: float) -> Tensor | None:
        """Return the filters; None if the inputs are constant."""
        level = ridge * self.covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        factor, failed = torch.linalg.cholesky_ex(
            self.covariance + level * torch.eye(self.covariance.shape[1]).to(level))
        if failed.any():
            return None
        filters = torch.cholesky_solve(self.correlation + level * self.filters.mT, factor)
        if self.centred:
            direction = torch.cholesky_solve(torch.ones_like(filters[:, :, :1]), factor)
            filters = filters - filters.sum(1, keepdim=True) * direction / direction.sum(1, keepdim=True)
        return filters.mT if bool(torch.isfinite(filters).all()) else None


def _fit(inputs: Tensor, targets: Tensor, filters: Tensor | None) -> float:
    """Return the squared correlation of outputs and targets, weighted by the variance of the targets."""
    if filters is None:
        return -1.0
    outputs = inputs @ filters.mT
    outputs, targets = outputs - outputs.mean(1, keepdim=True), targets - targets.mean(1, keepdim=True)
    tiny = torch.finfo(outputs.dtype).tiny
    explained = (outputs * targets).sum(1).square() / outputs.square().sum(1).clamp_min(tiny)
    return float(explained.sum() / targets.square().sum().clamp_min(tiny))

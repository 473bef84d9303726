"""The arithmetic of standardized filters in few and fast kernels, without autograd. Imports torch alone.

``torch.var_mean`` along rows is slow on CPU; a GroupNorm whose groups are the filters is not, and what it normalizes
lacks one factor per filter: the authors add eps to the unbiased deviation, outside the root. The same GroupNorm's
backward pass has the two terms of the gradient, and takes the factors before them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

__all__ = ['filter_gradient', 'standardize_filters', 'standardize_together']


@torch.no_grad()
def standardize_filters(weight: Tensor, eps: float, unbiased: bool = True,
                        out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the standardized weight, and what :func:`filter_gradient` wants, of shape (2, filters).

    Args:
        weight: float32 or float64, see :func:`mmws.standardize_weight`.
        eps, unbiased: see there.
        out: written to if given, of the dtype, shape and strides of ``weight``: memory in use is faster than fresh.

    Example:
        >>> standardized, _ = standardize_filters(torch.tensor([[1., 2., 3.]]), eps=1e-5)
        >>> standardized.round(decimals=3)
        tensor([[-1.,  0.,  1.]])
    """
    rows, back = _as_rows(weight)
    normalized, reciprocal = _normalize(rows)
    factor, for_gradient = _factors(reciprocal, _unbias(rows.shape[1], unbiased), eps)
    if out is None:
        return back(normalized.mul_(factor.unsqueeze(1))), for_gradient
    torch.mul(normalized, factor.unsqueeze(1), out=_as_rows(out)[0])
    return out, for_gradient


@torch.no_grad()
def standardize_together(weights: Sequence[Tensor], eps: float) -> list[tuple[Tensor, Tensor]]:
    """Return what :func:`standardize_filters` returns for each of ``weights``, in fewer kernels.

    Filters of one fan-in are rows of one matrix, whatever layer they belong to, and the factors are computed for all
    the filters at once. A ResNet-50 has 53 convolutions, but 11 fan-ins.

    Example:
        >>> (first, _), (second, _) = standardize_together([torch.randn(4, 8, 1, 1), torch.randn(2, 2, 2, 2)], 1e-5)
        >>> first.shape, second.shape
        (torch.Size([4, 8, 1, 1]), torch.Size([2, 2, 2, 2]))
    """
    alike: dict[int, list[int]] = defaultdict(list)
    rows = [_as_rows(weight) for weight in weights]
    for index, (filters, _) in enumerate(rows):
        alike[filters.shape[1]].append(index)
    normalized = [_normalize(torch.cat([rows[index][0] for index in indices])) for indices in alike.values()]
    counts = tuple((fan_in, len(filters)) for fan_in, (filters, _) in zip(alike, normalized, strict=True))
    factor, for_gradient = _factors(torch.cat([reciprocal for _, reciprocal in normalized]),
                                    _unbias_each(counts, weights[0].device, weights[0].dtype), eps)
    order = [index for indices in alike.values() for index in indices]
    of_filters = torch.split(for_gradient, [len(weights[index]) for index in order], dim=1)
    scaled = [filters.mul_(part.unsqueeze(1)) for (filters, _), part in zip(
        normalized, torch.split(factor, [count for _, count in counts]), strict=True)]
    of_weights = [part for filters, indices in zip(scaled, alike.values(), strict=True)
                  for part in torch.split(filters, [len(weights[index]) for index in indices])]
    done = {index: (rows[index][1](part), factors.contiguous()) for index, part, factors in zip(
        order, of_weights, of_filters, strict=True)}
    return [done[index] for index in range(len(weights))]


def filter_gradient(grad: Tensor, standardized: Tensor, for_gradient: Tensor) -> Tensor:
    """Return the gradient towards the weight, given that towards ``standardized``.

    Args:
        grad: of the shape of ``standardized``.
        standardized, for_gradient: as :func:`standardize_filters` returned them.
    """
    rows, back = _as_rows(standardized)
    filters, fan_in = rows.shape
    reciprocal, affine = for_gradient
    gradient, _, _ = torch.ops.aten.native_group_norm_backward(
        _as_rows(grad, like=standardized)[0].unsqueeze(0), rows.unsqueeze(0), torch.zeros_like(affine),
        reciprocal, affine, 1, filters, fan_in, filters, [True, False, False])
    return back(gradient.view(filters, fan_in))


def _normalize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of mean 0 and biased variance 1, and the reciprocal of each one's biased deviation."""
    filters, fan_in = rows.shape
    normalized, _, reciprocal = torch.native_group_norm(
        rows.unsqueeze(0), None, None, 1, filters, fan_in, filters, torch.finfo(rows.dtype).tiny)
    return normalized.view(filters, fan_in), reciprocal.view(filters)


def _factors(reciprocal: Tensor, unbias: Tensor | float, eps: float) -> tuple[Tensor, Tensor]:
    """What each normalized filter is to be multiplied by, and what :func:`filter_gradient` takes."""
    biased = reciprocal.reciprocal()
    std = biased * unbias
    divisor = std + eps
    # A constant filter normalizes to rounding errors over sqrt(tiny); it is to become zeros.
    constant = biased <= 2 * torch.finfo(biased.dtype).tiny ** 0.5
    # GroupNorm's backward has affine * reciprocal and affine * reciprocal**3 / n before its terms: with these two
    # values the factors are ours.
    reciprocal = (divisor / std).sqrt_().mul_(unbias)
    affine = (reciprocal * divisor).reciprocal_()
    return (biased / divisor).masked_fill_(constant, 0), torch.stack([reciprocal, affine])


def _unbias(fan_in: int, unbiased: bool = True) -> float:
    """What the biased standard deviation is multiplied by."""
    return math.sqrt(fan_in / (fan_in - int(unbiased)))


@cache
def _unbias_each(counts: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    values = [_unbias(fan_in) for fan_in, count in counts for _ in range(count)]
    return torch.tensor(values, device=device, dtype=dtype)


def _as_rows(weight: Tensor, like: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the filters as contiguous rows, in the order of their memory, and what brings rows back into shape.

    A channels_last weight is a view of its rows as a contiguous one is, so that its results keep its format.
    """
    if weight.stride(-1) == 1 and weight.is_contiguous() and (like is None or like.stride() == weight.stride()):
        return weight.view(len(weight), -1), lambda rows: rows.view_as(weight)  # in less time
    strides = (weight if like is None else like).stride()
    order = [0, *sorted(range(1, weight.dim()), key=lambda dim: -strides[dim])]
    permuted = weight.permute(order)
    inverse = sorted(range(weight.dim()), key=order.__getitem__)
    return permuted.reshape(len(permuted), -1).contiguous(), lambda rows: rows.view(permuted.shape).permute(inverse)

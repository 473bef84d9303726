"""Fast kernels that standardize filters and compute the gradient, without autograd.

``torch.var_mean`` along rows is slow on CPU. A GroupNorm with one filter per group is fast, but it adds eps to the
biased variance. The authors add eps to the unbiased standard deviation, so one factor per filter corrects the result.
GroupNorm's backward pass computes both terms of the gradient from two corrected numbers per filter. On CPU the optional
C++ kernels of ``cpp_kernels.py`` do the same with less traffic to memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mmws.ops.cpp_kernels import cpp_kernels

__all__ = ['filter_gradient', 'standardize_filters', 'standardize_together']


@torch.no_grad()
def standardize_filters(weight: Tensor, eps: float, unbiased: bool = True,
                        out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the standardized weight, and factors of shape (2, filters) for :func:`filter_gradient`.

    Args:
        weight: float32 or float64, see :func:`mmws.standardize_weight`.
        eps, unbiased: see :func:`mmws.standardize_weight`.
        out: optional output with the dtype, shape and strides of ``weight``. Used memory is faster than new memory.

    Example:
        >>> standardized, _ = standardize_filters(torch.tensor([[1., 2., 3.]]), eps=1e-5)
        >>> standardized.round(decimals=3)
        tensor([[-1.,  0.,  1.]])
    """
    rows, restore = _as_rows(weight)
    cpp = cpp_kernels(rows)
    if cpp is not None:
        written = torch.empty_like(rows) if out is None else _as_rows(out)[0]
        factors = cpp.standardize_rows(rows, eps, unbiased, written)
        return (restore(written) if out is None else out), factors
    normalized, reciprocal = _normalize(rows)
    scale, factors = _scale_and_factors(reciprocal, _unbias(rows.shape[1], unbiased), eps)
    if out is None:
        return restore(normalized.mul_(scale.unsqueeze(1))), factors
    torch.mul(normalized, scale.unsqueeze(1), out=_as_rows(out)[0])
    return out, factors


@torch.no_grad()
def standardize_together(weights: Sequence[Tensor], eps: float) -> list[tuple[Tensor, Tensor]]:
    """Return the results of :func:`standardize_filters` for each of ``weights``, with fewer kernel launches.

    All filters with the same fan-in are normalized as rows of one matrix. A ResNet-50 has 53 convolutions, but 11
    fan-ins.

    Example:
        >>> (first, _), (second, _) = standardize_together([torch.randn(4, 8, 1, 1), torch.randn(2, 2, 2, 2)], 1e-5)
        >>> first.shape, second.shape
        (torch.Size([4, 8, 1, 1]), torch.Size([2, 2, 2, 2]))
    """
    by_fan_in: dict[int, list[int]] = defaultdict(list)
    rows = [_as_rows(weight) for weight in weights]
    for index, (filters, _) in enumerate(rows):
        by_fan_in[filters.shape[1]].append(index)
    normalized = [_normalize(torch.cat([rows[index][0] for index in indices])) for indices in by_fan_in.values()]
    counts = [len(matrix) for matrix, _ in normalized]
    unbias = _unbias_each(tuple(zip(by_fan_in, counts)), weights[0].device, weights[0].dtype)
    scale, factors = _scale_and_factors(torch.cat([reciprocal for _, reciprocal in normalized]), unbias, eps)
    split = zip(normalized, torch.split(scale, counts), torch.split(factors, counts, dim=1))
    results = {}
    for indices, ((matrix, _), scale, factors) in zip(by_fan_in.values(), split):
        sizes = [len(weights[index]) for index in indices]
        parts = torch.split(matrix.mul_(scale.unsqueeze(1)), sizes)
        for index, part, part_factors in zip(indices, parts, torch.split(factors, sizes, dim=1)):
            results[index] = rows[index][1](part), part_factors
    return [results[index] for index in range(len(weights))]


def filter_gradient(grad: Tensor, standardized: Tensor, factors: Tensor) -> Tensor:
    """Return the gradient of the raw weight.

    Args:
        grad: gradient of ``standardized``, of the same shape.
        standardized, factors: results of :func:`standardize_filters`.
    """
    rows, restore = _as_rows(standardized)
    grads, _ = _as_rows(grad, like=standardized)
    cpp = cpp_kernels(rows)
    if cpp is not None:
        return restore(cpp.gradient_rows(grads, rows, factors))
    filters, fan_in = rows.shape
    reciprocal, affine = factors
    gradient, _, _ = torch.ops.aten.native_group_norm_backward(
        grads.unsqueeze(0), rows.unsqueeze(0), torch.zeros_like(affine),
        reciprocal, affine, 1, filters, fan_in, filters, [True, False, False])
    return restore(gradient.view(filters, fan_in))


def _normalize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of mean 0 and biased variance 1, and the reciprocals of the biased standard deviations."""
    filters, fan_in = rows.shape
    normalized, _, reciprocal = torch.native_group_norm(
        rows.unsqueeze(0), None, None, 1, filters, fan_in, filters, torch.finfo(rows.dtype).tiny)
    return normalized.view(filters, fan_in), reciprocal.view(filters)


def _scale_and_factors(reciprocal: Tensor, unbias: Tensor | float, eps: float) -> tuple[Tensor, Tensor]:
    """Return the scale of each normalized filter, and the factors for :func:`filter_gradient`."""
    biased = reciprocal.reciprocal()
    std = biased * unbias
    divisor = std + eps
    # A constant filter normalizes to rounding errors divided by sqrt(tiny). Its scale is 0.
    constant = biased <= 2 * torch.finfo(biased.dtype).tiny ** 0.5
    # GroupNorm's backward pass multiplies its terms by affine * reciprocal and affine * reciprocal**3 / n.
    # These two values turn the products into the factors of Weight Standardization.
    reciprocal = (divisor / std).sqrt_().mul_(unbias)
    affine = (reciprocal * divisor).reciprocal_()
    return (biased / divisor).masked_fill_(constant, 0), torch.stack([reciprocal, affine])


def _unbias(fan_in: int, unbiased: bool = True) -> float:
    """Return the ratio of the standard deviation to the biased one."""
    return math.sqrt(fan_in / (fan_in - int(unbiased)))


@lru_cache(maxsize=None)
def _unbias_each(counts: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    values = [_unbias(fan_in) for fan_in, count in counts for _ in range(count)]
    return torch.tensor(values, device=device, dtype=dtype)


def _as_rows(weight: Tensor, like: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the filters as contiguous rows in memory order, and a function that restores the shape and strides.

    Memory order keeps a channels_last weight a view of its rows, and its result channels_last.
    """
    if weight.stride(-1) == 1 and weight.is_contiguous() and (like is None or like.stride() == weight.stride()):
        return weight.view(len(weight), -1), lambda rows: rows.view_as(weight)  # the fast path
    strides = (weight if like is None else like).stride()
    order = [0, *sorted(range(1, weight.dim()), key=lambda dim: -strides[dim])]
    permuted = weight.permute(order)
    inverse = sorted(range(weight.dim()), key=order.__getitem__)
    return permuted.reshape(len(permuted), -1).contiguous(), lambda rows: rows.view(permuted.shape).permute(inverse)

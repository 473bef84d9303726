"""Weight Standardization of one tensor, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmws.ops.kernels import filter_gradient, standardize_filters
from mmws.ops.torch_compat import runs_eagerly, version

__all__ = ['HALF', 'attach_gradient', 'check_eps', 'check_fan_in', 'standardize_weight']

HALF = (torch.float16, torch.bfloat16)


def check_fan_in(weight: Tensor) -> None:
    """Refuse filters of a single element: they have no standard deviation.

    Raises:
        ValueError: if the fan-in (``weight[0].numel()``) is below 2.
    """
    fan_in = weight[0].numel()
    if fan_in < 2:
        raise ValueError(
            f'weight standardization needs a fan-in of at least 2, got {fan_in} (weight of shape '
            f'{tuple(weight.shape)}): a filter of one element has no standard deviation. '
            'Do not standardize this convolution, or give it a larger kernel or fewer groups.')


def check_eps(eps: Any) -> None:
    """Refuse an ``eps`` that cannot be added to a standard deviation.

    Raises:
        ValueError: if it is not a finite int or float >= 0.
    """
    if type(eps) not in (int, float) or not 0 <= eps < float('inf'):
        raise ValueError(f'eps: expected a finite number >= 0, got {eps!r}')


def standardize_weight(weight: Tensor, eps: float = 1e-5, unbiased: bool = True) -> Tensor:
    r"""Standardize each filter of a convolution weight to mean 0 and std 1.

    .. math:: \hat w_i = \frac{w_i - \mathrm{mean}(w_i)}{\mathrm{std}(w_i) + \epsilon}

    where :math:`w_i = ` ``weight[i]`` is one filter and the statistics run over its fan-in
    (in_channels / groups x kernel). A constant filter gives zeros, and a finite gradient.

    Weight Standardization, arXiv 1903.10520. ``unbiased=True`` is the authors' PyTorch form
    (``layers.py`` of joe-siyuan-qiao/pytorch-classification, and mmcv's ``ConvWS2d``); ``unbiased=False`` is
    the TensorFlow form of the README of joe-siyuan-qiao/WeightStandardization.

    Args:
        weight: filters of shape (out_channels, in_channels / groups, \*kernel), any floating dtype.
            For float16 and bfloat16 the statistics and the division are done in float32.
        eps: added to the standard deviation (not to the variance); in the units of the weight.
        unbiased: divide the sum of squares by fan-in - 1 instead of fan-in.

    Returns:
        The standardized weight: shape, dtype, device and memory format of ``weight``.

    Raises:
        ValueError: if the fan-in is below 2, or the dtype is one of integers.

    Example:
        >>> w = standardize_weight(torch.tensor([[[1., 2., 3.]], [[7., 7., 7.]]]))
        >>> w.round(decimals=3)
        tensor([[[-1.,  0.,  1.]],
        <BLANKLINE>
                [[ 0.,  0.,  0.]]])
    """
    check_fan_in(weight)
    if not (weight.is_floating_point() or weight.is_complex()):
        raise ValueError(f'weight standardization needs a floating dtype, got {weight.dtype} (weight of shape '
                         f'{tuple(weight.shape)}); convert it first, for example with weight.float()')
    wide = weight.float() if weight.dtype in HALF else weight
    if not runs_eagerly(weight):
        return _formula(wide, eps, unbiased).to(weight.dtype)
    return attach_gradient(wide, *standardize_filters(wide, eps, unbiased), eps, unbiased).to(weight.dtype)


def _formula(weight: Tensor, eps: float, unbiased: bool) -> Tensor:
    """Standardize with differentiable operators, for compilers, tracers, transforms and second derivatives."""
    per_filter = tuple(range(1, weight.dim()))
    variance, mean = torch.var_mean(weight, dim=per_filter, correction=int(unbiased), keepdim=True)
    # The gradient of sqrt is infinite at 0. The clamp makes it 0 for a constant filter.
    std = variance.clamp_min(torch.finfo(weight.dtype).tiny).sqrt()
    return (weight - mean) / (std + eps)


def attach_gradient(weight: Tensor, standardized: Tensor, factors: Tensor, eps: float, unbiased: bool = True) -> Tensor:
    """Return ``standardized`` with the gradient of :func:`standardize_weight` for ``weight``.

    Args:
        weight: the raw weight, float32 or float64.
        standardized, factors: results of :func:`mmws.ops.kernels.standardize_filters` for ``weight`` with the same
            ``eps`` and ``unbiased``. The returned tensor shares the memory of ``standardized``.
    """
    return _Attached.apply(weight, standardized, factors, eps, unbiased)  # type: ignore[no-any-return,no-untyped-call]


class _Attached(torch.autograd.Function):
    r"""Analytic gradient; saves only the standardized weight and two numbers per filter.

    With :math:`n` the fan-in and :math:`g` the gradient of the output, the gradient of a filter is
    :math:`\frac{g - \mathrm{mean}(g)}{\mathrm{std} + \epsilon} - \hat w \frac{\sum g \hat w}{(n - 1)\,\mathrm{std}}`
    (:math:`n` instead of :math:`n - 1` for ``unbiased=False``).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, standardized: Tensor, factors: Tensor, eps: float, unbiased: bool) -> Tensor:
        attached = standardized.detach()
        ctx.save_for_backward(attached, factors)
        ctx.weight, ctx.version, ctx.eps, ctx.unbiased = weight, version(weight), eps, unbiased
        return attached

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return filter_gradient(grad, *ctx.saved_tensors), None, None, None, None
        if version(ctx.weight) != ctx.version:
            raise RuntimeError('cannot compute a second derivative: the weight was changed in place after the '
                               'forward pass; run the forward pass again')
        recomputed = _formula(ctx.weight, ctx.eps, ctx.unbiased)
        return *torch.autograd.grad(recomputed, ctx.weight, grad, create_graph=True), None, None, None, None

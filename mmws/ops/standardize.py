"""The maths of Weight Standardization. Imports torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mmws.ops.kernels import filter_gradient, standardize_filters

__all__ = ['HALF', 'attach', 'check_eps', 'check_fan_in', 'runs_eagerly', 'standardize_weight']

HALF = (torch.float16, torch.bfloat16)


def check_fan_in(weight: Tensor) -> None:
    """Refuse a weight whose filters hold a single element.

    One number has mean itself and no standard deviation, so its standardized value is 0 or NaN whatever it learns.

    Raises:
        ValueError: if the fan-in (``weight[0].numel()``) is below 2.
    """
    fan_in = weight[0].numel()
    if fan_in < 2:
        raise ValueError(
            f'weight standardization needs a fan-in of at least 2, got {fan_in} (weight of shape '
            f'{tuple(weight.shape)}): a filter of one element has no standard deviation. '
            'Keep this convolution plain, or give it a larger kernel or fewer groups.')


def check_eps(eps: Any) -> None:
    """Refuse what cannot be added to a standard deviation.

    Raises:
        ValueError: if it is no number from 0 on.
    """
    if type(eps) not in (int, float) or not 0 <= eps < float('inf'):
        raise ValueError(f'eps: expected a number from 0 on, got {eps!r}')


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
        unbiased: divide the sum of squares by fan-in - 1 rather than by fan-in.

    Returns:
        The standardized weight: shape, dtype, device and memory format of ``weight``.

    Raises:
        ValueError: if the fan-in is below 2.

    Example:
        >>> import torch
        >>> w = standardize_weight(torch.tensor([[[1., 2., 3.]], [[7., 7., 7.]]]))
        >>> w.round(decimals=3)
        tensor([[[-1.,  0.,  1.]],
        <BLANKLINE>
                [[ 0.,  0.,  0.]]])
    """
    check_fan_in(weight)
    wide = weight.float() if weight.dtype in HALF else weight
    if not runs_eagerly(weight):
        return _formula(wide, eps, unbiased).to(weight.dtype)
    return attach(wide, *standardize_filters(wide, eps, unbiased), eps, unbiased).to(weight.dtype)


def _formula(weight: Tensor, eps: float, unbiased: bool) -> Tensor:
    """The formula in differentiable operators, for compilers, tracers and transforms, and for the second derivative."""
    per_filter = tuple(range(1, weight.dim()))
    variance, mean = torch.var_mean(weight, dim=per_filter, correction=int(unbiased), keepdim=True)
    # The gradient of sqrt is infinite at 0; clamped, a constant filter has none from its (zero) deviation.
    std = variance.clamp_min(torch.finfo(weight.dtype).tiny).sqrt()
    return (weight - mean) / (std + eps)


def runs_eagerly(weight: Tensor) -> bool:
    """Whether ``weight`` is a plain tensor that nobody compiles, traces, transforms or fakes."""
    return (not torch.compiler.is_compiling() and type(weight) in (Tensor, nn.Parameter)
            and (weight.is_cpu or weight.is_cuda) and not torch._C._is_tracing()
            and torch._C._len_torch_dispatch_stack() == 0 and torch._C._functorch.peek_interpreter_stack() is None
            and forward_ad._current_level < 0)


def attach(weight: Tensor, standardized: Tensor, factors: Tensor, eps: float, unbiased: bool = True) -> Tensor:
    """Return ``standardized`` with the gradient of :func:`standardize_weight` towards ``weight``.

    Args:
        weight: what was standardized; float32 or float64.
        standardized, factors: what :func:`mmws.ops.kernels.standardize_filters` made of it with the same ``eps`` and
            ``unbiased``. The result shares the memory of ``standardized``.
    """
    attached: Tensor = _Attached.apply(weight, standardized, factors, eps, unbiased)  # type: ignore[no-untyped-call]
    return attached


class _Attached(torch.autograd.Function):
    r"""Saves nothing but the standardized weight and two numbers per filter.

    With :math:`n` the fan-in and :math:`g` the gradient that arrives, that of a filter is
    :math:`\frac{g - \mathrm{mean}(g)}{\mathrm{std} + \epsilon} - \hat w \frac{\sum g \hat w}{(n - 1)\,\mathrm{std}}`
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, standardized: Tensor, factors: Tensor, eps: float, unbiased: bool) -> Tensor:
        attached = standardized.detach()
        ctx.save_for_backward(attached, factors)
        ctx.weight, ctx.version, ctx.eps, ctx.unbiased = weight, _version(weight), eps, unbiased
        return attached

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return filter_gradient(grad, *ctx.saved_tensors), None, None, None, None
        if _version(ctx.weight) != ctx.version:
            raise RuntimeError('a weight was changed between the forward pass and a second derivative through its '
                               'standardization')
        again = _formula(ctx.weight, ctx.eps, ctx.unbiased)
        return *torch.autograd.grad(again, ctx.weight, grad, create_graph=True), None, None, None, None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version

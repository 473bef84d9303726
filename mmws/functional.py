"""The maths of Weight Standardization. Imports torch alone."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['check_fan_in', 'standardize_weight']


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
    wide = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    per_filter = tuple(range(1, weight.dim()))
    variance, mean = torch.var_mean(wide, dim=per_filter, correction=int(unbiased), keepdim=True)
    # The gradient of sqrt is infinite at 0; clamped, a constant filter has none from its (zero) deviation.
    std = variance.clamp_min(torch.finfo(wide.dtype).tiny).sqrt()
    return ((wide - mean) / (std + eps)).to(weight.dtype)

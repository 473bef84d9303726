"""Convolutions that standardize their weight. Imports torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmws.errors import WSError
from mmws.layers.weight_cache import WeightCache
from mmws.ops.standardize import check_eps, check_fan_in, runs_eagerly, standardize_weight

__all__ = ['ConvWS1d', 'ConvWS2d', 'ConvWS3d', 'WeightStandardized']


FOLD_FIRST = 'fold first: model.eval(); model = mmws.fold(model)'


class WeightStandardized(nn.Module):
    """Mixed in before a torch convolution: its weight is standardized on the way to the kernel.

    The parameter stays the raw weight, so initialization, state dict, copies and pickles are those of the
    convolution it is mixed into.
    """

    eps: float
    _cache: WeightCache | None = None

    def __init__(self, *args: Any, eps: float = 1e-5, **kwargs: Any) -> None:
        check_eps(eps)
        super().__init__(*args, **kwargs)
        check_fan_in(self.filters())
        self.eps = eps

    def __setattr__(self, name: str, value: Any) -> None:
        old = self._parameters.get('weight') if name == 'weight' and 'eps' in vars(self) else None
        comparable = type(old) is type(value) is nn.Parameter and old.shape == value.shape  # no DTensor, say
        before = self.filters() if comparable else None
        super().__setattr__(name, value)
        if before is not None and _rescales(before, self.filters()):
            self._parameters['weight'] = old
            raise WSError(f'the filters of {self} are to be scaled one by one, as fusing a norm into them does, but '
                          f'standardization undoes the scale; {FOLD_FIRST}')

    def filters(self) -> Tensor:
        """Return the raw weight with a filter in each row."""
        weight: Tensor = self.weight  # type: ignore[assignment]
        return weight

    def standardized_weight(self) -> Tensor:
        """Return the weight as the kernel takes it, computed once per update."""
        weight: Tensor = self.weight  # type: ignore[assignment]
        if not runs_eagerly(weight):
            return standardize_weight(self.filters(), self.eps)
        if self._cache is None:
            self._cache = self._make_cache()
        return self._cache.standardize(weight, self.eps)

    def _make_cache(self) -> WeightCache:
        return WeightCache()

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if 'weight' in self._parameters and weight is not self.weight:
            raise WSError(f'{self} is called with another weight than its own, as fusing a norm on the fly does '
                          f'(efficient_conv_bn_eval), but standardization undoes the scale; {FOLD_FIRST}')
        output: Tensor = super()._conv_forward(input, self.standardized_weight(), bias)  # type: ignore[misc]
        return output

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != '_cache'}

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, eps={self.eps:g}'


@torch.no_grad()
def _rescales(old: Tensor, new: Tensor) -> bool:
    """Whether each filter of ``new`` is that of ``old`` times a factor, and not all factors are 1."""
    if old.is_meta or new.is_meta or old.device != new.device or torch.equal(old, new):
        return False
    cosine = nn.functional.cosine_similarity(old.double().flatten(1), new.double().flatten(1))
    return bool(((cosine.abs() > 1 - 1e-4) | (new == 0).flatten(1).all(1)).all())


# The torch class is a direct base of each: mmengine's `init_cfg` with `layer='Conv2d'` looks no further.
class ConvWS1d(WeightStandardized, nn.Conv1d):
    r"""``nn.Conv1d`` whose filters are standardized before use: mean 0, std 1 over fan-in.

    .. math:: y = x * \frac{w - \mathrm{mean}(w)}{\mathrm{std}(w) + \epsilon} + b

    Arguments, parameters and initialization are those of ``nn.Conv1d``, and ``eps`` (keyword only).
    See :func:`mmws.standardize_weight` for the paper, the reference code and the dtypes.

    Shape:
        (N, in_channels, L) to (N, out_channels, L').

    Raises:
        ValueError: if in_channels / groups x kernel_size is below 2.

    Example:
        >>> import torch
        >>> ConvWS1d(4, 8, 3)(torch.randn(2, 4, 10)).shape
        torch.Size([2, 8, 8])
    """


class ConvWS2d(WeightStandardized, nn.Conv2d):
    r"""``nn.Conv2d`` whose filters are standardized before use: mean 0, std 1 over fan-in.

    .. math:: y = x * \frac{w - \mathrm{mean}(w)}{\mathrm{std}(w) + \epsilon} + b

    Arguments, parameters and initialization are those of ``nn.Conv2d``, and ``eps`` (keyword only); the outputs
    are those of mmcv's ``ConvWS2d``. See :func:`mmws.standardize_weight` for the paper, the reference code and
    the dtypes. A normalization layer has to follow: the output does not shrink with the weight.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H', W').

    Raises:
        ValueError: if in_channels / groups x kernel height x kernel width is below 2.

    Example:
        >>> import torch
        >>> ConvWS2d(4, 8, 3, padding=1)(torch.randn(2, 4, 10, 10)).shape
        torch.Size([2, 8, 10, 10])
    """


class ConvWS3d(WeightStandardized, nn.Conv3d):
    r"""``nn.Conv3d`` whose filters are standardized before use: mean 0, std 1 over fan-in.

    .. math:: y = x * \frac{w - \mathrm{mean}(w)}{\mathrm{std}(w) + \epsilon} + b

    Arguments, parameters and initialization are those of ``nn.Conv3d``, and ``eps`` (keyword only).
    See :func:`mmws.standardize_weight` for the paper, the reference code and the dtypes.

    Shape:
        (N, in_channels, D, H, W) to (N, out_channels, D', H', W').

    Raises:
        ValueError: if in_channels / groups x the kernel's elements is below 2.

    Example:
        >>> import torch
        >>> ConvWS3d(4, 8, 3)(torch.randn(2, 4, 5, 6, 7)).shape
        torch.Size([2, 8, 3, 4, 5])
    """

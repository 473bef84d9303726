"""Convolutions that standardize their weight. Imports torch alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmws.functional import check_fan_in, runs_eagerly, standardize_weight
from mmws.keep import Keeper

__all__ = ['ConvWS1d', 'ConvWS2d', 'ConvWS3d', 'standardize_conv_', 'standardized_class']


class WeightStandardized(nn.Module):
    """Mixed in before a torch convolution: its weight is standardized on the way to the kernel.

    The parameter stays the raw weight, so initialization, state dict, copies and pickles are those of the
    convolution it is mixed into.
    """

    eps: float
    _keeper: Keeper | None = None

    def __init__(self, *args: Any, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_fan_in(self.weight)  # type: ignore[arg-type]
        self.eps = eps

    def standardized_weight(self, weight: Tensor | None = None) -> Tensor:
        """Return the weight as the kernel takes it, computed once per update; see :class:`mmws.keep.Keeper`.

        Args:
            weight: what the convolution was called with if not its own parameter.
        """
        weight = self.weight if weight is None else weight  # type: ignore[assignment]
        if not runs_eagerly(weight):  # type: ignore[arg-type]
            return standardize_weight(weight, self.eps)  # type: ignore[arg-type]
        if self._keeper is None:
            self._keeper = Keeper()
        return self._keeper.standardize(weight, self.eps)  # type: ignore[arg-type]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = super()._conv_forward(  # type: ignore[misc]
            input, self.standardized_weight(weight), bias)
        return output

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != '_keeper'}

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, eps={self.eps:g}'


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


# By name, so that mmcv's classes are known without importing mmcv. Exact classes only: a subclass may do anything.
_STANDARDIZED = {
    'torch.nn.modules.conv.Conv1d': ConvWS1d,
    'torch.nn.modules.conv.Conv2d': ConvWS2d,
    'torch.nn.modules.conv.Conv3d': ConvWS3d,
    'mmcv.cnn.bricks.wrappers.Conv2d': ConvWS2d,
    'mmcv.cnn.bricks.wrappers.Conv3d': ConvWS3d,
    'mmcv.cnn.bricks.conv_ws.ConvWS2d': ConvWS2d,
}


def standardized_class(conv: nn.Module) -> type[WeightStandardized] | None:
    """Return the class that ``conv`` becomes under Weight Standardization, None if there is none.

    Example:
        >>> standardized_class(nn.Conv2d(2, 2, 1)).__name__
        'ConvWS2d'
    """
    return _STANDARDIZED.get(f'{type(conv).__module__}.{type(conv).__qualname__}')


def standardize_conv_(conv: nn.Module, eps: float = 1e-5) -> nn.Module:
    """Make ``conv`` standardize its weight, in place.

    The module stays the same object, and with it parameters, hooks, sharing, ``training`` and every reference that
    somebody holds: only its class changes.

    Raises:
        KeyError: if :func:`standardized_class` knows no class for it.
        ValueError: if its fan-in is below 2.

    Example:
        >>> standardize_conv_(nn.Conv2d(2, 4, 1))
        ConvWS2d(2, 4, kernel_size=(1, 1), stride=(1, 1), eps=1e-05)
    """
    check_fan_in(conv.weight)  # type: ignore[arg-type]
    conv.__class__ = _STANDARDIZED[f'{type(conv).__module__}.{type(conv).__qualname__}']
    conv.eps = eps  # type: ignore[assignment]
    return conv

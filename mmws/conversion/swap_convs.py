"""A convolution made one that standardizes its weight, in place. Imports torch alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from mmws.layers.conv import ConvWS1d, ConvWS2d, ConvWS3d, WeightStandardized
from mmws.layers.conv_transpose import ConvTransposeWS1d, ConvTransposeWS2d, ConvTransposeWS3d
from mmws.ops.standardize import check_fan_in

__all__ = ['standardize_conv_', 'standardized_class', 'standardizes_itself']

# By name, so that mmcv's classes are known without importing mmcv. Exact classes only: a subclass may do anything.
_STANDARDIZED: dict[str, type[WeightStandardized]] = {
    'torch.nn.modules.conv.Conv1d': ConvWS1d,
    'torch.nn.modules.conv.Conv2d': ConvWS2d,
    'torch.nn.modules.conv.Conv3d': ConvWS3d,
    'torch.nn.modules.conv.ConvTranspose1d': ConvTransposeWS1d,
    'torch.nn.modules.conv.ConvTranspose2d': ConvTransposeWS2d,
    'torch.nn.modules.conv.ConvTranspose3d': ConvTransposeWS3d,
    'mmcv.cnn.bricks.wrappers.Conv2d': ConvWS2d,
    'mmcv.cnn.bricks.wrappers.Conv3d': ConvWS3d,
    'mmcv.cnn.bricks.wrappers.ConvTranspose2d': ConvTransposeWS2d,
    'mmcv.cnn.bricks.wrappers.ConvTranspose3d': ConvTransposeWS3d,
    'mmcv.cnn.bricks.conv_ws.ConvWS2d': ConvWS2d,
}
# Convolutions whose forward does more than torch's, and reads its weight from ``self.weight``.
_OWN_FORWARD = {
    'mmdet.models.backbones.trident_resnet.TridentConv',
    'mmcv.cnn.bricks.conv2d_adaptive_padding.Conv2dAdaptivePadding',
    'mmcv.ops.deform_conv.DeformConv2d',
    'mmcv.ops.deform_conv.DeformConv2dPack',
    'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2d',
    'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2dPack',
}
# mmcv's variant with eps inside the root and an affine map, and its switchable atrous convolution on top of it.
_STANDARDIZE_THEMSELVES = {'mmcv.cnn.bricks.conv_ws.ConvAWS2d', 'mmcv.ops.saconv.SAConv2d'}


def standardizes_itself(conv: nn.Module) -> bool:
    """Whether the weight of ``conv`` is standardized already, by us or in a variant of mmcv's."""
    return isinstance(conv, WeightStandardized) or _name(conv) in _STANDARDIZE_THEMSELVES


def standardized_class(conv: nn.Module) -> type[WeightStandardized] | None:
    """Return the class that ``conv`` becomes under Weight Standardization, None if there is none.

    Example:
        >>> standardized_class(nn.Conv2d(2, 2, 1)).__name__
        'ConvWS2d'
    """
    plain: Any = type(conv)
    return _with_own_forward(plain) if _name(conv) in _OWN_FORWARD else _STANDARDIZED.get(_name(conv))


def standardize_conv_(conv: nn.Module, eps: float = 1e-5) -> nn.Module:
    """Make ``conv`` standardize its weight, in place.

    The module stays the same object, and with it parameters, hooks, sharing, ``training`` and every reference that
    somebody holds: only its class changes.

    Raises:
        TypeError: if :func:`standardized_class` knows no class for it.
        ValueError: if its fan-in is below 2.

    Example:
        >>> standardize_conv_(nn.Conv2d(2, 4, 1))
        ConvWS2d(2, 4, kernel_size=(1, 1), stride=(1, 1), eps=1e-05)
    """
    standardized = standardized_class(conv)
    if standardized is None:
        raise TypeError(f'{type(conv).__name__} has no standardized form')
    check_fan_in(standardized.filters(conv))  # type: ignore[arg-type]
    conv.__class__ = standardized
    conv.eps = eps  # type: ignore[assignment]
    return conv


def _name(module: nn.Module) -> str:
    return f'{type(module).__module__}.{type(module).__qualname__}'


class _OwnForward(WeightStandardized):
    """A convolution of another library: its own forward runs, on a stand-in that holds the standardized weight."""

    plain: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        stand_in = object.__new__(self.plain)
        stand_in.__dict__.update(
            self.__dict__, _parameters={**self._parameters, 'weight': self.standardized_weight()})
        return self.plain.forward(stand_in, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (self.plain,), self.__getstate__()


@cache
def _with_own_forward(plain: Any) -> type[WeightStandardized]:
    return type(f'{plain.__name__}WS', (_OwnForward, plain), {'plain': plain, '__module__': __name__})


def _new(plain: Any) -> nn.Module:
    """An empty module of the class that ``plain`` becomes, for copies and pickles, which find no made class by name."""
    return object.__new__(_with_own_forward(plain))

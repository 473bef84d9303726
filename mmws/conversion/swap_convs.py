"""Convert one convolution in place to a class that standardizes its weight."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

from mmws.conversion.layer_types import class_name
from mmws.layers.conv import ConvWS1d, ConvWS2d, ConvWS3d, WeightStandardized
from mmws.layers.conv_transpose import ConvTransposeWS1d, ConvTransposeWS2d, ConvTransposeWS3d
from mmws.layers.fx_leaf import fx_leaf
from mmws.ops.standardize import check_fan_in

__all__ = ['MMCV_CONV_WS', 'standardize_conv_', 'standardized_class', 'standardizes_itself']

MMCV_CONV_WS = 'mmcv.cnn.bricks.conv_ws.ConvWS2d'
_STANDARDIZED: dict[str, type[WeightStandardized]] = {MMCV_CONV_WS: ConvWS2d, **{
    f'{library}.{name}': standardized for library in ('torch.nn.modules.conv', 'mmcv.cnn.bricks.wrappers')
    for name, standardized in {
        'Conv1d': ConvWS1d, 'Conv2d': ConvWS2d, 'Conv3d': ConvWS3d, 'ConvTranspose1d': ConvTransposeWS1d,
        'ConvTranspose2d': ConvTransposeWS2d, 'ConvTranspose3d': ConvTransposeWS3d}.items()}}
# Convolution classes of other libraries whose own forward reads `self.weight`.
_OTHER_FORWARD = {
    'mmdet.models.backbones.trident_resnet.TridentConv',
    'mmcv.cnn.bricks.conv2d_adaptive_padding.Conv2dAdaptivePadding',
    'mmcv.ops.deform_conv.DeformConv2d', 'mmcv.ops.deform_conv.DeformConv2dPack',
    'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2d', 'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2dPack'}
# mmcv's variant with eps inside the root and an affine map, and the switchable atrous convolution derived from it.
_STANDARDIZE_THEMSELVES = {'mmcv.cnn.bricks.conv_ws.ConvAWS2d', 'mmcv.ops.saconv.SAConv2d'}


def standardizes_itself(conv: nn.Module) -> bool:
    """Return whether ``conv`` standardizes its weight and stays as it is: an mmws class, ``ConvAWS2d`` or ``SAConv2d``.

    mmcv's ``ConvWS2d`` is replaced.
    """
    return isinstance(conv, WeightStandardized) or class_name(conv) in _STANDARDIZE_THEMSELVES


def standardized_class(conv: nn.Module) -> type[WeightStandardized] | None:
    """Return the standardized class for ``conv``, None if its class is unknown.

    Example:
        >>> standardized_class(nn.Conv2d(2, 2, 1)).__name__
        'ConvWS2d'
    """
    plain: Any = type(conv)
    return _with_other_forward(plain) if class_name(conv) in _OTHER_FORWARD else _STANDARDIZED.get(class_name(conv))


def standardize_conv_(conv: nn.Module, eps: float = 1e-5) -> nn.Module:
    """Make ``conv`` standardize its weight, in place.

    Only the class changes. The module stays the same object, so parameters, hooks, sharing, ``training`` and references
    to it stay valid.

    Raises:
        TypeError: if :func:`standardized_class` has no class for it.
        ValueError: if its fan-in is below 2.

    Example:
        >>> standardize_conv_(nn.Conv2d(2, 4, 1))
        ConvWS2d(2, 4, kernel_size=(1, 1), stride=(1, 1), eps=1e-05)
    """
    standardized = standardized_class(conv)
    if standardized is None:
        raise TypeError(f'no standardized class for {type(conv).__name__}')
    check_fan_in(standardized.filters(conv))  # type: ignore[arg-type]
    conv.__class__ = standardized
    conv.eps = eps  # type: ignore[assignment]
    return conv


class _WithOtherForward(WeightStandardized):
    """Base of the standardized subclasses of ``plain``, a convolution class of another library.

    The forward of ``plain`` reads ``self.weight``. It runs on a shallow copy of the module that has the standardized
    weight.
    """

    plain: type[nn.Module]

    @fx_leaf
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        copy = object.__new__(self.plain)
        copy.__dict__.update(self.__dict__, _parameters={**self._parameters, 'weight': self.standardized_weight()})
        return self.plain.forward(copy, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (self.plain,), self.__getstate__()


@lru_cache(maxsize=None)
def _with_other_forward(plain: Any) -> type[WeightStandardized]:
    return type(f'{plain.__name__}WS', (_WithOtherForward, plain), {'plain': plain, '__module__': __name__})


def _new(plain: Any) -> nn.Module:
    """Return an empty module of the class made for ``plain``. Pickles record this function: the class has no import."""
    return object.__new__(_with_other_forward(plain))

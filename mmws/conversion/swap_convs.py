"""Convert one convolution in place to a class that standardizes its weight."""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import Any

from torch import Tensor, nn

from mmws.conversion.layer_types import class_name
from mmws.conversion.weight_use import WeightUse, with_weight
from mmws.layers.conv import ConvWS1d, ConvWS2d, ConvWS3d, WeightStandardized
from mmws.layers.conv_transpose import (
    ConvTransposeWS1d,
    ConvTransposeWS2d,
    ConvTransposeWS3d,
    TransposedStandardized,
)
from mmws.layers.fx_leaf import fx_leaf
from mmws.ops.standardize import check_fan_in
from mmws.ops.torch_compat import ConvTransposeNd

__all__ = ['MMCV_CONV_WS', 'VARIANTS', 'filters_of', 'has_known_forward', 'names_that_clash', 'standardize_conv_',
           'standardized_class', 'standardizes_itself']

MMCV_CONV_WS = 'mmcv.cnn.bricks.conv_ws.ConvWS2d'
_STANDARDIZED: dict[str, type[WeightStandardized]] = {MMCV_CONV_WS: ConvWS2d, **{
    f'{library}.{name}': standardized for library in ('torch.nn.modules.conv', 'mmcv.cnn.bricks.wrappers')
    for name, standardized in {
        'Conv1d': ConvWS1d, 'Conv2d': ConvWS2d, 'Conv3d': ConvWS3d, 'ConvTranspose1d': ConvTransposeWS1d,
        'ConvTranspose2d': ConvTransposeWS2d, 'ConvTranspose3d': ConvTransposeWS3d}.items()}}
# Their forward hands `self.weight` to an operator in C++: it does not run on the meta device, nor show its arguments.
_RUN_OPERATORS = {f'mmcv.ops.{name}' for name in (
    'deform_conv.DeformConv2d', 'deform_conv.DeformConv2dPack',
    'modulated_deform_conv.ModulatedDeformConv2d', 'modulated_deform_conv.ModulatedDeformConv2dPack')}
# DetectoRS's form in mmcv, and the switchable atrous convolution derived from it. WS would remove gamma and beta, which
# mmcv takes from the pretrained weights.
VARIANTS = {'mmcv.cnn.bricks.conv_ws.ConvAWS2d', 'mmcv.ops.saconv.SAConv2d'}
_OWN_NAMES = ('eps', 'filters', 'standardized_weight', 'call_with_weight', 'swap_layout', 'use_cache', 'plain',
              '_cache', '_make_cache', '_compiled', 'prepare_compiled')
_COPYING = ('__getstate__', '__reduce__', '__reduce_ex__', '__deepcopy__')


def standardizes_itself(conv: nn.Module) -> bool:
    """Return whether ``conv`` standardizes its weight and stays as it is: an mmws class, ``ConvAWS2d`` or ``SAConv2d``.

    mmcv's ``ConvWS2d`` is replaced.
    """
    return isinstance(conv, WeightStandardized) or class_name(conv) in VARIANTS


def has_known_forward(conv: nn.Module) -> bool:
    """Return whether the forward of ``conv`` is known to hand its weight to one convolution and to nothing else.

    For any other class a dry run shows it, see :class:`mmws.conversion.weight_use.WeightUse`.
    """
    return class_name(conv) in _STANDARDIZED or class_name(conv) in _RUN_OPERATORS


def standardized_class(conv: nn.Module, use: WeightUse | None = None) -> type[WeightStandardized]:
    """Return the class of ``conv`` after the conversion; for a class with a forward of its own, a subclass of it.

    Args:
        conv: a convolution.
        use: what a dry run showed, for a class with a forward of its own. Without it, the layout of the weight is that
            of the class.

    Example:
        >>> standardized_class(nn.Conv2d(2, 2, 1)).__name__
        'ConvWS2d'
    """
    plain: Any = type(conv)
    transposed = use.is_transposed() if use and use.functions else isinstance(conv, ConvTransposeNd)
    return _STANDARDIZED.get(class_name(conv)) or _with_other_forward(plain, transposed)


def filters_of(conv: Any, standardized: Any) -> Tensor:
    """Return the filters of ``conv`` in the rows, for a class that :func:`standardized_class` returns."""
    return with_weight(conv, conv.weight, standardized).filters()  # type: ignore[operator,no-any-return]


def names_that_clash(conv: nn.Module) -> list[str]:
    """Return the names that ``conv`` has of its own, where a standardized convolution needs another meaning."""
    found: list[str] = [name for name in ('forward', '_conv_forward') if name in vars(conv)]  # use the raw weight
    if class_name(conv) not in _STANDARDIZED:
        found += [name for name in _OWN_NAMES if hasattr(conv, name)]
        found += [name for name in _COPYING if getattr(type(conv), name, None) is not getattr(nn.Module, name, None)]
    return found


def standardize_conv_(conv: nn.Module, eps: float = 1e-5, use: WeightUse | None = None) -> nn.Module:
    """Make ``conv`` standardize its weight, in place.

    Only the class changes. The module stays the same object, so parameters, hooks, sharing, ``training`` and references
    to it stay valid. The forward of an unknown class must hand its weight to one convolution; ``use`` is what a dry run
    showed of it.

    Raises:
        ValueError: if its fan-in is below 2.

    Example:
        >>> standardize_conv_(nn.Conv2d(2, 4, 1))
        ConvWS2d(2, 4, kernel_size=(1, 1), stride=(1, 1), eps=1e-05)
    """
    standardized = standardized_class(conv, use)
    check_fan_in(filters_of(conv, standardized))
    object.__setattr__(conv, '__class__', standardized)  # not `conv.eps = ...`: the class may have a __setattr__
    vars(conv)['eps'] = eps
    conv.prepare_compiled()  # type: ignore[operator]
    return conv


class _WithOtherForward(WeightStandardized):
    """Base of the standardized subclasses of ``plain``, a convolution class with a forward of its own.

    The forward of a converted class runs on a new object at each call, which shares the module's buffers, submodules
    and attributes. State that the forward keeps by ``id(self)`` is lost at each call. A dry run calls the forward of a
    copy several times: counters of the class or of a Python module count these calls.
    """

    plain: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (self.plain, isinstance(self, TransposedStandardized)), self.__getstate__()


@lru_cache(maxsize=None)
def _with_other_forward(plain: Any, transposed: bool) -> type[WeightStandardized]:
    layout = (TransposedStandardized, ) if transposed else ()

    @fx_leaf
    @wraps(plain.forward)  # the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = plain  # torch 2.0 does not compile a function in a function that refers to `plain`
        return self.call_with_weight(lambda weight: kind.forward(with_weight(self, weight, kind), *args, **kwargs))

    return type(f'{plain.__name__}WS', (_WithOtherForward, *layout, plain),
                {'plain': plain, 'forward': forward, '__module__': __name__})


def _new(plain: Any, transposed: bool | None = None) -> nn.Module:
    """Return an empty module of the class made for ``plain``. Pickles record this function: the class has no import."""
    if transposed is None:  # old pickles have the class alone
        transposed = issubclass(plain, ConvTransposeNd)
    return object.__new__(_with_other_forward(plain, transposed))

"""Convolutions that standardize their weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmws.errors import WSError
from mmws.layers.compiled_weight import CompiledWeight
from mmws.layers.fx_leaf import fx_leaf
from mmws.layers.recompute import RecomputedWeight
from mmws.layers.weight_cache import WeightCache
from mmws.ops.standardize import check_eps, check_fan_in, standardize_weight
from mmws.ops.torch_compat import (
    TELLS_EXPORTS,
    has_saved_tensor_hooks,
    is_compiled_inference,
    is_compiling,
    runs_eagerly,
)

__all__ = ['ConvWS1d', 'ConvWS2d', 'ConvWS3d', 'WeightStandardized']

torch.fx.wrap('standardize_weight')  # a symbolic trace records the call
FOLD_FIRST = 'standardization undoes the scale of a filter; fold first: model.eval(); model = mmws.fold(model)'


class WeightStandardized(nn.Module):
    """Mixin for a torch convolution: the forward pass standardizes the weight.

    The parameter stays the raw weight. Initialization and state dict are those of the torch class. Copies and pickles
    leave out the cache.

    Attributes:
        eps: added to the standard deviation.
        use_cache: False to standardize at each use, and again in the backward pass: this saves the memory of a second
            weight and costs time.
    """

    eps: float
    use_cache: bool = True
    weight: Tensor
    _cache: WeightCache | None = None
    _compiled: CompiledWeight | None = None  # since the first evaluation mode

    def __init__(self, *args: Any, eps: float = 1e-5, **kwargs: Any) -> None:
        check_eps(eps)
        super().__init__(*args, **kwargs)
        check_fan_in(self.filters())
        self.eps = eps

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ('_cache', '_compiled', 'use_cache'):
            vars(self)[name] = value  # a class of a user may have a __setattr__
            return
        old = self._parameters.get('weight') if name == 'weight' and 'eps' in vars(self) else None
        comparable = type(old) is type(value) is nn.Parameter and old.shape == value.shape  # not a DTensor
        before = self.filters() if comparable else None
        super().__setattr__(name, value)
        if name == 'qconfig' and value is not None:  # set by torch.ao.quantization
            warnings.warn('torch does not know standardized layers: their weights stay without fake quantization; '
                          'fold first: model.eval(); model = mmws.fold(model); then prepare the folded network',
                          stacklevel=2)
        if before is not None and _fuses_norm(before, self.filters()):
            self._parameters['weight'] = old
            raise WSError(f'cannot fuse a norm into this layer, {self}: the new weight is the old one with a factor '
                          f'per filter, but {FOLD_FIRST}')

    def filters(self) -> Tensor:
        """Return the raw weight with one filter per row."""
        return self.swap_layout(self.weight)

    def standardized_weight(self) -> Tensor:
        """Return the standardized weight, from the cache if the weight is unchanged.

        It has the shape, the dtype and the device of ``weight``, and its gradient flows to ``weight``.

        Example:
            >>> weight = ConvWS2d(4, 8, 3).standardized_weight()
            >>> weight.shape, weight[0].mean().abs() < 1e-6, weight[0].std().round(decimals=3)
            (torch.Size([8, 4, 3, 3]), tensor(True), tensor(1., grad_fn=<RoundBackward1>))
        """
        return self._standardized(shared=False)

    def _standardized(self, shared: bool) -> Tensor:
        """Return the standardized weight; if ``shared``, it may be memory that later calls write to."""
        weight = self.weight  # once: a parametrization computes it at each access
        if not self.use_cache or not runs_eagerly(weight):
            compiled = self._compiled if self.use_cache and shared else None
            if compiled is not None and is_compiled_inference() and compiled.fits(weight):
                return compiled.refresh(weight, self.eps)
            return standardize_weight(self.swap_layout(weight), self.eps)
        if self._cache is None:
            self._cache = self._make_cache()
        return self._cache.standardize(weight, self.eps)

    def call_with_weight(self, convolve: Callable[[Tensor], Any]) -> Any:
        """Return ``convolve(standardized weight)``; with ``use_cache=False`` autograd saves only the raw weight."""
        if self.use_cache or not runs_eagerly(self.weight) or not torch.is_grad_enabled() or has_saved_tensor_hooks():
            return convolve(self._standardized(shared=True))
        with RecomputedWeight(self.weight, self.eps, self.swap_layout) as standardized:
            return convolve(standardized)

    def swap_layout(self, weight: Tensor) -> Tensor:
        """Change from the layout of the weight to one filter per row, or back."""
        return weight

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the layer, as ``nn.Module.train``."""
        super().train(mode)
        self.prepare_compiled()
        return self

    def prepare_compiled(self) -> None:
        """Prepare the layer for :func:`torch.compile`, after a change of the mode."""
        weight, old = self._parameters.get('weight'), self._compiled
        if is_compiling():
            return
        if weight is None or not (self.use_cache and TELLS_EXPORTS and weight.is_cpu and runs_eagerly(weight)):
            self._compiled = None
        elif not self.training and (old is None or not old.fits(weight)):
            self._compiled = CompiledWeight(weight)

    @fx_leaf
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)  # type: ignore[no-any-return]

    def _make_cache(self) -> WeightCache:
        return WeightCache()

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_compiling() and 'weight' in self._parameters and weight is not self.weight:
            raise WSError(f'cannot fuse a norm into this layer, {self}: it was called with a weight that is not its '
                          f'own (efficient_conv_bn_eval does this), but {FOLD_FIRST}')
        convolve = super()._conv_forward  # type: ignore[misc]
        return self.call_with_weight(lambda standardized: convolve(input, standardized, bias))  # type: ignore[no-any-return]

    def __prepare_scriptable__(self) -> nn.Module:
        raise WSError('torch.jit.script cannot compile a layer that standardizes its weight; fold first: '
                      'model.eval(); model = mmws.fold(model)')

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ('_cache', '_compiled')}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.prepare_compiled()

    def extra_repr(self) -> str:
        cache = '' if self.use_cache else 'use_cache=False'
        return ', '.join(filter(None, (super().extra_repr(), f'eps={self.eps:g}', cache)))


@torch.no_grad()
def _fuses_norm(old: Tensor, new: Tensor) -> bool:
    """Return True if ``new`` is ``old`` with a factor per filter. One factor for several filters is weight decay."""
    if old.is_meta or new.is_meta or old.device != new.device or not new.is_floating_point() or torch.equal(old, new):
        return False
    rounding = torch.finfo(new.dtype)
    rows, scaled = old.double().flatten(1), new.double().flatten(1)
    decays = len(rows) > 1 and _is_scaled(rows.reshape(1, -1), scaled.reshape(1, -1), rounding)
    return _is_scaled(rows, scaled, rounding) and not decays


def _is_scaled(old: Tensor, new: Tensor, rounding: torch.finfo) -> bool:
    """Return True if each row of ``new`` is a multiple of the row of ``old``, up to four units in the last place."""
    largest = old.abs().argmax(1, keepdim=True)
    factors = (new.gather(1, largest) / old.gather(1, largest)).nan_to_num()  # 0 / 0 in a row of zeros
    return torch.allclose(new, factors * old, rtol=4 * rounding.eps, atol=4 * rounding.eps * rounding.tiny)


# The torch class is a direct base: mmengine's `init_cfg` with `layer='Conv2d'` looks only at direct bases.
class ConvWS1d(WeightStandardized, nn.Conv1d):
    """``nn.Conv1d`` that standardizes its filters before use: mean 0, std 1 over fan-in. See :class:`ConvWS2d`.

    Example:
        >>> ConvWS1d(4, 8, 3)(torch.randn(2, 4, 10)).shape
        torch.Size([2, 8, 8])
    """


class ConvWS2d(WeightStandardized, nn.Conv2d):
    r"""``nn.Conv2d`` that standardizes its filters before use: mean 0, std 1 over fan-in.

    .. math:: y = x * \frac{w - \mathrm{mean}(w)}{\mathrm{std}(w) + \epsilon} + b

    Arguments, parameters and initialization are the same as for ``nn.Conv2d``; ``eps`` (keyword only) is added to the
    standard deviation. The outputs equal those of mmcv's ``ConvWS2d``. See :func:`mmws.standardize_weight` for the
    paper, the reference code and the dtypes. A normalization layer must follow: the weight's scale does not affect the
    output.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H', W').

    Raises:
        ValueError: if the fan-in, in_channels / groups x kernel elements, is below 2.

    Example:
        >>> ConvWS2d(4, 8, 3, padding=1)(torch.randn(2, 4, 10, 10)).shape
        torch.Size([2, 8, 10, 10])
    """


class ConvWS3d(WeightStandardized, nn.Conv3d):
    """``nn.Conv3d`` that standardizes its filters before use: mean 0, std 1 over fan-in. See :class:`ConvWS2d`.

    Example:
        >>> ConvWS3d(4, 8, 3)(torch.randn(2, 4, 5, 6, 7)).shape
        torch.Size([2, 8, 3, 4, 5])
    """

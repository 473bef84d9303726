"""Convolutions whose weight is computed by torch's parametrizations, as the alternatives to standardization.

Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from mmws.conversion.swap_convs import standardizes_itself

__all__ = ['WEIGHTS', 'plain_conv_', 'reparametrize_conv_', 'weight_form', 'written_through']

WEIGHTS = {'ws': ('Weight Standardization', 'standardized'), 'plain': ('Plain weights', 'changed'),
           'wn': ('Weight normalization', 'weight-normalized'),
           'spectral': ('Spectral normalization', 'spectrally normalized')}
"""The values of the option ``weight``: the method, and what it makes of a convolution."""

_NORMALIZE = {'wn': parametrizations.weight_norm, 'spectral': parametrizations.spectral_norm}
_KINDS = {parametrizations._WeightNorm: 'wn', parametrizations._SpectralNorm: 'spectral'}


def reparametrize_conv_(conv: nn.Module, weight: str) -> nn.Module:
    r"""Have torch compute the weight of ``conv``: direction and length, or a spectral norm of 1.

    .. math:: \text{wn: } \hat w_i = g_i \frac{w_i}{\lVert w_i \rVert}, \qquad
        \text{spectral: } \hat w = \frac{w}{\sigma_{\max}(w)}

    with :math:`w_i` a filter, and :math:`\sigma_{\max}` the largest singular value of all filters as rows. Weight
    normalization, arXiv 1602.07868: ``parametrizations.weight.original0`` (:math:`g`) and ``original1`` take the place
    of ``weight`` in the state dict. Spectral normalization, arXiv 1802.05957: ``parametrizations.weight.original``, and
    the buffers ``parametrizations.weight.0._u`` and ``_v``. A state dict that has the plain ``weight`` loads too. A
    transposed convolution's filters lie along the weight's second axis; in one with groups, those at the same place of
    each group share :math:`g`. Copies are as ever; whole modules cannot be pickled, which is torch's limit.

    Args:
        conv: a convolution with a weight of its own.
        weight: ``'wn'`` or ``'spectral'``.

    Example:
        >>> conv = reparametrize_conv_(nn.Conv2d(2, 4, 1), 'wn')
        >>> sorted(conv.state_dict())
        ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """
    _NORMALIZE[weight](conv, dim=int(isinstance(conv, nn.modules.conv._ConvTransposeNd)))  # type: ignore[operator]
    conv.register_load_state_dict_pre_hook(_take_plain_weight)  # type: ignore[no-untyped-call]
    return conv


@torch.no_grad()
def plain_conv_(conv: Any) -> None:
    """Undo :func:`reparametrize_conv_`, in place: the weight becomes what it was computed to be.

    torch's ``remove_parametrizations`` takes the weight away from copies of the module too, which share its class.
    """
    trains = any(original.requires_grad for original in conv.parametrizations.weight.parameters())
    weight = nn.Parameter(conv.weight.clone(), trains)
    conv.__class__ = type(conv).__bases__[0]
    del conv.parametrizations
    conv._parameters = {'weight': weight, **conv._parameters}


def weight_form(conv: nn.Module) -> str:
    """Return which of :data:`WEIGHTS` the weight of ``conv`` is.

    Example:
        >>> weight_form(nn.Conv2d(2, 4, 1)), weight_form(parametrizations.spectral_norm(nn.Conv2d(2, 4, 1)))
        ('plain', 'spectral')
    """
    if standardizes_itself(conv) or type(conv).__module__ == 'mmcv.cnn.bricks.conv_ws':
        return 'ws'
    return _KINDS.get(type(_last(conv)), 'plain') if parametrize.is_parametrized(conv, 'weight') else 'plain'


@contextmanager
def written_through(model: nn.Module) -> Iterator[None]:
    """A block in which what is written into ``conv.weight`` stays, as initialization writes it.

    Otherwise it would go to a tensor that is computed at each access. Originals that are loaded meanwhile count more.
    """
    convs: list[Any] = [module for module in model.modules() if weight_form(module) in _NORMALIZE]
    with parametrize.cached():
        computed = {conv: (conv.weight, conv.weight.clone(), _versions(conv)) for conv in convs}
        yield
    for conv, (written, before, versions) in computed.items():
        if versions == _versions(conv) and not torch.equal(written, before):
            conv.load_state_dict({'weight': written.detach()}, strict=False)


def _versions(conv: Any) -> list[int]:
    return [original._version for original in conv.parametrizations.weight.parameters()]


def _last(conv: Any) -> Any:
    return conv.parametrizations.weight[-1]


@torch.no_grad()
def _take_plain_weight(conv: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A load_state_dict pre-hook: where the plain weight stands, put what computes it."""
    plain = state_dict.pop(f'{prefix}weight', None)
    if plain is not None:
        dim = int(isinstance(conv, nn.modules.conv._ConvTransposeNd))
        twin = _NORMALIZE[weight_form(conv)](_Holder(plain), dim=dim)  # type: ignore[operator]
        state_dict.update({f'{prefix}{key}': value for key, value in twin.state_dict().items()})


class _Holder(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

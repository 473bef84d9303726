"""Weight normalization and spectral normalization by torch's parametrizations, the alternatives to standardization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmws.conversion.layer_types import class_name
from mmws.conversion.swap_convs import MMCV_CONV_WS, standardizes_itself
from mmws.ops.torch_compat import (
    NORMALIZE,
    ConvTransposeNd,
    SpectralParametrization,
    WeightNormParametrization,
    add_load_state_dict_pre_hook,
    version,
)

__all__ = ['WEIGHTS', 'remove_parametrization_', 'reparametrize_conv_', 'weight_form', 'written_through']

WEIGHTS = {'ws': ('Weight Standardization', 'standardized'), 'plain': ('Plain weights', 'changed'),
           'wn': ('Weight normalization', 'weight-normalized'),
           'spectral': ('Spectral normalization', 'spectrally normalized')}
"""Values of the option ``weight``: the name of the method, and a participle for reports."""

_FORMS: dict[Any, str] = {WeightNormParametrization: 'wn', SpectralParametrization: 'spectral'}


def reparametrize_conv_(conv: nn.Module, weight: str) -> nn.Module:
    r"""Apply torch's weight normalization or spectral normalization to ``conv``.

    .. math:: \text{wn: } \hat w_i = g_i \frac{w_i}{\lVert w_i \rVert}, \qquad
        \text{spectral: } \hat w = \frac{w}{\sigma_{\max}(w)}

    with :math:`w_i` a filter, and :math:`\sigma_{\max}` the largest singular value of the matrix with a filter in each
    row. Weight normalization, arXiv 1602.07868: the state dict has ``parametrizations.weight.original0`` (:math:`g`)
    and ``original1`` instead of ``weight``. Spectral normalization, arXiv 1802.05957:
    ``parametrizations.weight.original`` and the buffers ``parametrizations.weight.0._u`` and ``_v``. A state dict with
    the plain ``weight`` loads as well. The filters of a transposed convolution are along the second axis; with groups,
    the filters at the same index of each group share :math:`g`. ``copy.deepcopy`` works; torch cannot pickle whole
    modules with parametrizations.

    Args:
        conv: a convolution with a plain weight.
        weight: ``'wn'`` or ``'spectral'``.

    Example:
        >>> conv = reparametrize_conv_(nn.Conv2d(2, 4, 1), 'spectral')
        >>> sorted(conv.state_dict())
        ['bias', 'parametrizations.weight.0._u', 'parametrizations.weight.0._v', 'parametrizations.weight.original']
    """
    NORMALIZE[weight](conv, dim=int(isinstance(conv, ConvTransposeNd)))
    add_load_state_dict_pre_hook(conv, _load_plain_weight)
    return conv


@torch.no_grad()
def remove_parametrization_(conv: Any) -> None:
    """Undo :func:`reparametrize_conv_`, in place: the computed weight becomes the parameter.

    torch's ``remove_parametrizations`` would break copies of the module, which share its class.
    """
    trains = any(original.requires_grad for original in conv.parametrizations.weight.parameters())
    weight = nn.Parameter(conv.weight.clone(), trains)
    conv.__class__ = type(conv).__bases__[0]
    del conv.parametrizations
    conv._parameters = {'weight': weight, **conv._parameters}


def weight_form(conv: Any) -> str:
    """Return the form of the weight of ``conv``, a key of :data:`WEIGHTS`.

    Example:
        >>> weight_form(nn.Conv2d(2, 4, 1)), weight_form(reparametrize_conv_(nn.Conv2d(2, 4, 1), 'spectral'))
        ('plain', 'spectral')
    """
    if standardizes_itself(conv) or class_name(conv) == MMCV_CONV_WS:
        return 'ws'
    parametrized = parametrize.is_parametrized(conv, 'weight')
    return _FORMS.get(type(conv.parametrizations.weight[-1]), 'plain') if parametrized else 'plain'


@contextmanager
def written_through(model: nn.Module) -> Iterator[None]:
    """Context manager in which in-place writes to ``conv.weight`` change the parametrized weight, for ``init_weights``.

    Otherwise such a write is lost: torch computes ``conv.weight`` at each access. If a state dict is loaded
    inside the block, its values stay.
    """
    convs: list[Any] = [module for module in model.modules() if weight_form(module) in NORMALIZE]
    with parametrize.cached():
        computed = {conv: (conv.weight, conv.weight.clone(), _versions(conv)) for conv in convs}
        yield
    for conv, (written, before, versions) in computed.items():
        if versions == _versions(conv) and not torch.equal(written, before):
            conv.load_state_dict({'weight': written.detach()}, strict=False)


def _versions(conv: Any) -> list[int]:
    return [version(original) for original in conv.parametrizations.weight.parameters()]


@torch.no_grad()
def _load_plain_weight(conv: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A load_state_dict pre-hook: replace the plain weight in ``state_dict`` by the tensors of the parametrization."""
    plain = state_dict.pop(f'{prefix}weight', None)
    if plain is not None:
        module = nn.Module()
        module.weight = nn.Parameter(plain.clone())
        NORMALIZE[weight_form(conv)](module, dim=int(isinstance(conv, ConvTransposeNd)))
        state_dict.update({f'{prefix}{key}': value for key, value in module.state_dict().items()})

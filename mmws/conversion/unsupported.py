"""Convolutions that cannot be standardized, whatever follows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import nn

from mmws.conversion.layer_types import class_name, has_conv_sized_weight
from mmws.conversion.parametrize_convs import WEIGHTS, weight_form
from mmws.conversion.report import ITSELF
from mmws.conversion.swap_convs import (
    VARIANTS,
    filters_of,
    has_known_forward,
    names_that_clash,
    standardized_class,
    standardizes_itself,
)
from mmws.conversion.weight_use import WeightUse
from mmws.errors import format_exception
from mmws.ops.torch_compat import ConvTransposeNd

__all__ = ['shared_weight_reasons', 'unsupported_reason']


def unsupported_reason(conv: nn.Module, use: WeightUse | None, weight: str = 'ws') -> str:
    """Return the reason why ``conv`` cannot be standardized, independent of its consumers; empty if it can.

    ``use``: how it uses its weight, if its class has a forward that is not known; ``weight``: the option.
    """
    form = weight_form(conv)
    for hook in conv._forward_pre_hooks.values():
        if type(hook).__module__ in ('torch.nn.utils.weight_norm', 'torch.nn.utils.spectral_norm'):
            name = type(hook).__module__.rpartition('.')[2]
            return f'torch.nn.utils.{name} computes its weight; undo it first with torch.nn.utils.remove_{name}'
    if class_name(conv) in VARIANTS:
        return 'already standardized, in the form of DetectoRS: gamma * (w - mean) / sqrt(var + 1e-5) + beta'
    if standardizes_itself(conv) or form in ('wn', 'spectral'):
        return f'already {WEIGHTS[form][1]}'
    if not has_known_forward(conv):
        own = conv._parameters.get('weight')
        if own is not None and not has_conv_sized_weight(conv):
            return f'{type(conv).__name__}: its weight has {own.dim()} dimensions, so its rows are no filters'
        if reason := (use or WeightUse()).reason(conv):
            return reason
    if weight in ('wn', 'spectral') and 'weight' not in conv._parameters:
        return f'{type(conv).__name__}: its weight is no parameter, other code computes it'
    if weight in ('wn', 'spectral') and use and use.is_transposed() != isinstance(conv, ConvTransposeNd):
        return f'{type(conv).__name__}: weight={weight!r} knows transposed filters by the class only'
    if clash := names_that_clash(conv):
        return f'{type(conv).__name__}: it has its own {", ".join(clash)}'
    if error := _class_error(conv, use):
        return error
    if filters_of(conv, standardized_class(conv, use))[0].numel() < 2:
        return 'fan-in of 1: the standard deviation is undefined'
    return ''


def shared_weight_reasons(names: Mapping[nn.Module, str], reasons: Mapping[nn.Module, str],
                          uses: Mapping[nn.Module, WeightUse | None], weight: str) -> dict[nn.Module, str]:
    """Return the reason for each convolution that shares its weight with a module that is not standardized alike.

    Args:
        names: of all modules of the network.
        reasons: why each convolution stays plain; empty if it does not.
        uses: how each convolution uses its weight, if its class has a forward that is not known.
        weight: the option. torch's parametrizations would end the sharing.
    """
    users: dict[int, list[nn.Module]] = defaultdict(list)
    for module in names:
        for parameter in module.parameters(recurse=False):
            users[id(parameter)].append(module)
    found = {}
    for conv, reason in reasons.items():
        others = [other for other in users.get(id(conv._parameters.get('weight')), ()) if other is not conv]
        alike = all(reasons.get(other) == '' and _is_transposed(other, uses[other]) == _is_transposed(conv, uses[conv])
                    for other in others)
        if others and not reason and (not alike or weight in ('wn', 'spectral')):
            found[conv] = f'its weight is also that of {names[others[0]] or ITSELF}'
    return found


def _is_transposed(conv: nn.Module, use: WeightUse | None) -> bool:
    return use.is_transposed() if use and use.functions else isinstance(conv, ConvTransposeNd)


def _class_error(conv: nn.Module, use: WeightUse | None) -> str:
    """Return the reason why Python cannot change the class of ``conv``, empty if it can."""
    try:
        object.__setattr__(object.__new__(type(conv)), '__class__', standardized_class(conv, use))
    except Exception as error:  # foreign code decides about its subclasses, and may raise anything
        return f'{type(conv).__name__}: it cannot have a standardized subclass ({format_exception(error)})'
    return ''

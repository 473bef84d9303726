"""Modules of a BatchNorm network and of its converted form: which belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from mmws.conversion.layer_types import class_name, is_batch_norm
from mmws.conversion.module_tree import module_names
from mmws.conversion.placement import find_placement
from mmws.errors import WSError

__all__ = ['conv_before_each_norm', 'copy_weights_', 'module_pairs']

_FITTED_CONVS = {'torch.nn.modules.conv.Conv2d', 'mmcv.cnn.bricks.wrappers.Conv2d'}
ADVICE = 'expected the same network with BatchNorm'


def module_pairs(teacher: nn.Module, model: nn.Module, name: str = '') -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield each module of ``teacher``, a BatchNorm network, and that of the converted ``model`` at the same place.

    Raises:
        WSError: if the networks differ in more than their norms.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> [(type(one).__name__, type(other).__name__)
        ...  for one, other in module_pairs(net, nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8)))][1:]
        [('Conv2d', 'Conv2d'), ('BatchNorm2d', 'GroupNorm')]
    """
    yield teacher, model
    if is_batch_norm(teacher):
        return
    where = f'transplant_: {name or "the network"}'
    children, others = ({key: child for key, child in module._modules.items() if child is not None}
                        for module in (teacher, model))
    if len(children) != len(others):
        raise WSError(f'{where} has {len(others)} children, in `teacher` it has {len(children)}; {ADVICE}')
    for key, parameter in teacher._parameters.items():
        own = model._parameters.get(key)
        if parameter is not None and (own is None or own.shape != parameter.shape):
            raise WSError(f'{where}.{key} has shape {None if own is None else tuple(own.shape)}, in `teacher` it has '
                          f'{tuple(parameter.shape)}; {ADVICE}')
    for (key, child), other in zip(children.items(), others.values()):
        yield from module_pairs(child, other, f'{name}.{key}'.lstrip('.'))


def copy_weights_(pairs: Mapping[nn.Module, nn.Module]) -> None:
    """Copy the parameters and buffers that both modules of a pair have."""
    with torch.no_grad():
        for source, target in pairs.items():
            own = {**target._parameters, **target._buffers}
            for key, tensor in {**source._parameters, **source._buffers}.items():
                copy = own.get(key)
                if tensor is not None and copy is not None and copy.shape == tensor.shape:
                    copy.copy_(tensor)


def conv_before_each_norm(teacher: nn.Module) -> tuple[dict[nn.Module, nn.Module], dict[nn.Module, str]]:
    """Return the convolution before each BatchNorm, and for other convolutions the reason why they cannot be fitted.

    A convolution can be fitted if it is a ``Conv2d``, and its output and the input of one norm are the same.
    """
    names = module_names(teacher)
    decisions = find_placement(teacher).decisions
    readers: dict[nn.Module, list[nn.Module]] = {}
    for conv, decision in decisions.items():
        for norm in decision.norms:
            readers.setdefault(norm, []).append(conv)
    found, reasons = {}, {}
    for conv, decision in decisions.items():
        shared = next((names[norm] for norm in decision.norms if len(readers[norm]) > 1), None)
        reason = (decision.reason or (len(decision.norms) > 1 and 'several norms read its output') or
                  (class_name(conv) not in _FITTED_CONVS and f'{type(conv).__name__} is not fitted, only Conv2d') or
                  (shared is not None and f'{shared} reads the outputs of other convolutions too'))
        if reason or not decision.norms:
            reasons[conv] = reason or 'no norm reads its output'
        else:
            found[decision.norms[0]] = conv
    return found, reasons

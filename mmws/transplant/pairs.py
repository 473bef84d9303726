"""Modules of a BatchNorm network and of its converted form: which belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from mmws.conversion.layer_types import class_name, is_batch_norm
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


def conv_before_each_norm(teacher: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the convolution before each BatchNorm; none if it is not the only one, or other layers use its output."""
    found: dict[nn.Module, list[nn.Module]] = {}
    for conv, decision in find_placement(teacher).decisions.items():
        for norm in decision.norms:
            fits = not decision.reason and len(decision.norms) == 1 and class_name(conv) in _FITTED_CONVS
            found.setdefault(norm, []).append(conv if fits else norm)
    return {norm: convs[0] for norm, convs in found.items() if len(convs) == 1 and convs[0] is not norm}

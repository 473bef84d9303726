"""Replacement of BatchNorm by another norm, in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mmws.conversion.layer_types import act_group_norm, batch_norms, is_batch_norm, is_trained, norm_channels
from mmws.conversion.module_tree import module_names
from mmws.errors import near_matches
from mmws.layers.batch_channel_norm import BatchChannelNorm, EstimatedBatchChannelNorm, EstimatedBatchNorm, group_count
from mmws.layers.switchable_norm import SwitchableNorm

__all__ = ['NORMS', 'Norm', 'replace_batch_norms_', 'replace_norm_']

_INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_DROPPED_ATTRIBUTES = ('num_features', 'momentum', 'affine', 'track_running_stats', 'process_group', 'group',
                       'group_size', 'stats_mode')


def replace_norm_(norm: nn.Module, kind: str = 'GN', num_groups: int = 32, pointwise: bool = False,
                  dimensions: int = 2) -> nn.Module:
    """Replace a BatchNorm by a norm of another ``kind``, in place.

    The module stays the same object, with its affine parameters, hooks, ``training`` and sharing. Running statistics
    are kept if the new norm has them too. ``eps`` becomes 1e-5, the default of the new norm. In batch-channel
    normalization, the BatchNorm's parameters, statistics and ``eps`` move to the new submodule ``bn``. New parameters
    train if the old ones do.

    Args:
        norm: a BatchNorm of a known class; with a built-in activation only for ``'GN'`` and ``'LN'``.
        kind: a key of :data:`NORMS`; ``'LN'`` is GroupNorm (arXiv 1803.08494) with one group.
        num_groups: the maximum number of groups, see :func:`mmws.layers.batch_channel_norm.group_count`.
        pointwise: True if the input has a single value per channel and image; ``'IN'`` then gives a GroupNorm.
        dimensions: the number of spatial dimensions of the input, for ``'IN'``.

    Raises:
        ValueError: if ``kind`` is not in :data:`NORMS`.

    Example:
        >>> norm = replace_norm_(nn.BatchNorm2d(48))
        >>> type(norm).__name__, norm.num_groups, norm.num_channels
        ('GroupNorm', 24, 48)
    """
    if kind not in NORMS:
        raise ValueError(f'norm {kind!r}: {near_matches(kind, NORMS)}')
    groups = group_count(norm_channels(norm), num_groups, pointwise)
    return _become_(norm, NORMS[kind].make(norm, groups, pointwise, dimensions))


def replace_batch_norms_(model: nn.Module, kind: str, num_groups: int, producers: Mapping[nn.Module, Any],
                         pointwise: Collection[nn.Module]) -> tuple[dict[str, str], dict[str, str]]:
    """Replace each BatchNorm of ``model``, and rename it if its parent stores its name.

    The new GN, LN or IN is trainable if its convolution is, even if the BatchNorm was frozen.
    ``producers`` and ``pointwise`` are those of :class:`mmws.conversion.placement.Placement`.

    Returns:
        The change of each replaced norm, and the reason for each other one, by module name.
    """
    found = batch_norms(model)
    kept = {norm: reason for norm in found if (reason := _unsupported_reason(norm, kind))}
    changes = {norm: _replace_(norm, kind, num_groups, producers.get(norm), norm in pointwise)
               for norm in found if norm not in kept}
    for parent in list(model.modules()):
        _rename_norms_(parent, changes, NORMS[kind].prefix)
    names = module_names(model)
    return ({name: changes[norm] for norm, name in names.items() if norm in changes},
            {name: kept[norm] for norm, name in names.items() if norm in kept})


def _unsupported_reason(norm: nn.Module, kind: str) -> str:
    if not is_batch_norm(norm):
        return f'{type(norm).__name__} is an unknown subclass of BatchNorm'
    if 'forward' in vars(norm) or 'weight' not in norm._parameters:
        return f'{type(norm).__name__} has a forward of its own, or a weight that other code computes'
    act = act_group_norm(norm) and kind not in ('GN', 'LN')
    return f'{type(norm).__name__} has a built-in activation, only GN and LN can replace it' if act else ''


def _replace_(norm: nn.Module, kind: str, num_groups: int, conv: Any, pointwise: bool) -> str:
    """Replace ``norm``, which follows ``conv`` (or None), and describe the change."""
    old = type(norm)
    pointwise = pointwise or (old is nn.BatchNorm1d and not conv)  # the input may be vectors
    weight = getattr(conv, 'weight', None)
    of_class = 1 if old is nn.BatchNorm1d else 3 if old is nn.BatchNorm3d else 2
    dimensions = of_class if weight is None else weight.dim() - 2
    replace_norm_(norm, kind, num_groups, pointwise, dimensions)
    if kind in ('GN', 'LN', 'IN') and is_trained(conv):
        norm.requires_grad_()  # BatchNorm is frozen because of its statistics
    groups = f'{norm.num_groups}, ' if hasattr(norm, 'num_groups') else ''
    undefined = ': InstanceNorm is undefined for a single value per channel' if kind == 'IN' and pointwise else ''
    return f'{old.__name__} -> {type(norm).__name__}({groups}{norm_channels(norm)}){undefined}'


def _group_norm(norm: Any, groups: int, *_: Any) -> nn.Module:
    group_norm, channels = act_group_norm(norm) or nn.GroupNorm, norm_channels(norm)
    return _take_tensors_(group_norm(num_groups=groups, num_channels=channels, affine=bool(norm.affine)), norm)


def _instance_norm(norm: Any, groups: int, pointwise: bool, dimensions: int) -> nn.Module:
    if pointwise:
        return _group_norm(norm, groups)
    return _take_tensors_(_INSTANCE_NORMS[dimensions](norm_channels(norm), affine=bool(norm.affine)), norm)


def _batch_channel_norm(norm: Any, groups: int, *_: Any) -> nn.Module:
    new = _match_(BatchChannelNorm(norm_channels(norm), num_groups=groups), norm)
    new.bn = _become_(nn.Module(), norm)  # a copy without the hooks, which stay with `norm`
    return new


def _estimated_batch_channel_norm(norm: Any, groups: int, *_: Any) -> nn.Module:
    new = _match_(EstimatedBatchChannelNorm(norm_channels(norm), num_groups=groups), norm)
    momentum = 0.1 if norm.momentum is None else norm.momentum
    new.bn = _take_tensors_(EstimatedBatchNorm(norm_channels(norm), norm.eps, momentum, norm.affine), norm)
    return new


class Norm(NamedTuple):
    """A norm that can replace BatchNorm."""

    name: str  # in reports
    prefix: str  # of mmcv for the names of such norms
    make: Callable[[nn.Module, int, bool, int], nn.Module]  # from the BatchNorm, groups, pointwise, dimensions


NORMS = {
    'GN': Norm('GroupNorm', 'gn', _group_norm),
    'LN': Norm('GroupNorm of one group', 'gn', lambda norm, *_: _group_norm(norm, 1)),
    'IN': Norm('InstanceNorm', 'in', _instance_norm),
    'SN': Norm('SwitchableNorm', 'sn', lambda norm, *_: _take_tensors_(SwitchableNorm(norm_channels(norm)), norm)),
    'BCN': Norm('BatchChannelNorm', 'bcn', _batch_channel_norm),
    'EstBN': Norm('EstimatedBatchChannelNorm', 'estbn', _estimated_batch_channel_norm),
}
"""Values of the option ``norm``. To add a norm, add an entry."""


def _match_(new: nn.Module, norm: nn.Module) -> nn.Module:
    """Give ``new`` the device, dtype, ``requires_grad`` and mode of ``norm``."""
    for tensor in filter(torch.is_floating_point, (*norm.parameters(False), *norm.buffers(False))):
        new.to(tensor)
    return new.requires_grad_(all(parameter.requires_grad for parameter in norm.parameters(False))).train(norm.training)


def _take_tensors_(new: nn.Module, norm: nn.Module) -> nn.Module:
    """Give ``new`` the affine parameters of ``norm``, and its running statistics if both have them."""
    _match_(new, norm)
    for name, tensor in {**norm._parameters, **dict(norm.named_buffers(recurse=False))}.items():
        if getattr(new, name, None) is not None:
            setattr(new, name, tensor)
    return new


def _become_(module: nn.Module, new: nn.Module) -> nn.Module:
    """Turn ``module`` into ``new``: swap class and attributes, keep hooks, submodules and attributes of other code.

    It must stay the same object: parent modules, hooks and user code hold references to it.
    """
    kept = {name: value for name, value in vars(module).items()
            if 'hook' in name or (name not in vars(new) and name not in _DROPPED_ATTRIBUTES)}
    modules = {**new._modules, **module._modules}
    module.__class__ = type(new)
    vars(module).clear()
    vars(module).update({**vars(new), **kept}, _modules=modules)
    return module


def _rename_norms_(parent: nn.Module, replaced: Mapping[nn.Module, str], prefix: str) -> None:
    """Rename the norms of a ``parent`` that stores their names (``norm1_name = 'bn1'``), as mmcv's modules do."""
    for attribute, old in list(vars(parent).items()):
        if re.fullmatch(r'norm\d*_name', attribute) and parent._modules.get(old) in replaced and old.startswith('bn'):
            new = f'{prefix}{old[2:]}'
            if new in parent._modules:
                continue
            renamed = {new if name == old else name: child for name, child in parent._modules.items()}
            parent._modules.clear()
            parent._modules.update(renamed)
            setattr(parent, attribute, new)

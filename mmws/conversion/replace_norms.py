"""BatchNorm replaced by another norm, in place. Imports torch alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmws.conversion.norm_types import act_group_norm, batch_norms, is_batch_norm, norm_channels
from mmws.layers.batch_channel_norm import BatchChannelNorm, EstimatedBatchChannelNorm, EstimatedBatchNorm, group_count
from mmws.layers.switchable_norm import SwitchableNorm

__all__ = ['NORMS', 'replace_batch_norms_', 'replace_norm_']

NORMS = {'GN': ('GroupNorm', 'gn'), 'LN': ('GroupNorm of one group', 'gn'), 'IN': ('InstanceNorm', 'in'),
         'SN': ('SwitchableNorm', 'sn'), 'BCN': ('BatchChannelNorm', 'bcn'),
         'EstBN': ('EstimatedBatchChannelNorm', 'estbn')}
"""What may stand in BatchNorm's place: its name, and mmcv's abbreviation where a module names a norm by its type."""

_INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_BATCH_CHANNEL_NORMS = {'BCN': BatchChannelNorm, 'EstBN': EstimatedBatchChannelNorm}
_CONTENT = ('_parameters', '_buffers', '_modules')
_BATCH_NORM_STATE = ('num_features', 'momentum', 'track_running_stats', 'process_group', 'group', 'group_size',
                     'stats_mode')


def replace_norm_(norm: nn.Module, kind: str = 'GN', num_groups: int = 32, pointwise: bool = False,
                  dimensions: int = 2) -> nn.Module:
    """Make a BatchNorm of any type a norm of another ``kind``, in place.

    The module stays the same object, with its affine parameters, hooks, ``training`` and sharing. Running statistics
    go, but where the new norm has some too. ``eps`` becomes the new norm's 1e-5. In batch-channel normalization the
    BatchNorm becomes the part ``bn``, as it was; new parameters train if the old ones did.

    Args:
        norm: of a type that :func:`mmws.conversion.norm_types.is_batch_norm` knows; with an activation inside only for
            GroupNorm.
        kind: one of :data:`NORMS`; ``'LN'`` is GroupNorm (arXiv 1803.08494) with one group.
        num_groups: upper bound of the number of groups, see :func:`mmws.layers.batch_channel_norm.group_count`.
        pointwise: whether the norm takes a single value per channel and image: an instance has no statistics there,
            and ``'IN'`` makes a GroupNorm.
        dimensions: of the places that the norm takes, for ``'IN'``.

    Example:
        >>> norm = replace_norm_(nn.BatchNorm2d(48))
        >>> type(norm).__name__, norm.num_groups, norm.num_channels
        ('GroupNorm', 24, 48)
    """
    channels = norm_channels(norm)
    if kind in _BATCH_CHANNEL_NORMS:
        return _wrap_(norm, kind, group_count(channels, num_groups, pointwise))
    if kind == 'SN':
        return _become_(norm, SwitchableNorm(channels))
    if kind == 'IN' and not pointwise:
        return _become_(norm, _INSTANCE_NORMS[dimensions](channels, affine=True))
    groups = 1 if kind == 'LN' else group_count(channels, num_groups, pointwise)
    act = act_group_norm(norm)
    _become_(norm, nn.GroupNorm(groups, channels))
    if act:
        norm.__class__, norm._fast_norm = act, False  # type: ignore[assignment]
    return norm


def replace_batch_norms_(model: nn.Module, kind: str, num_groups: int, fed_by: Mapping[nn.Module, Any],
                         pointwise: Iterable[nn.Module]) -> tuple[dict[str, str], dict[str, str]]:
    """Replace each BatchNorm of ``model`` and name it after its new type where its parent does so.

    A norm that takes no statistics of the batch trains if the convolution before it does, also where the BatchNorm was
    frozen.

    Args:
        model: any network.
        kind: one of :data:`NORMS`.
        num_groups: upper bound of the number of groups.
        fed_by: a convolution whose output the norm takes, that trains if any does.
        pointwise: the norms that take a single value per channel and image.

    Returns:
        What became of the norms, by name, and why others stay.
    """
    found = list(batch_norms(model))
    left = {norm: reason for norm in found if (reason := _why_not(norm, kind))}
    became: dict[nn.Module, str] = {}
    for norm in found:
        if norm not in left:
            was, conv = type(norm), fed_by.get(norm)
            single = norm in pointwise or (was is nn.BatchNorm1d and not conv)  # it may take vectors
            replace_norm_(norm, kind, num_groups, single, conv.weight.dim() - 2 if conv else _dimensions(was))
            became[norm] = f'{was.__name__} -> {_describe(norm)}'
            if kind == 'IN' and single:
                became[norm] += ': a single value per channel is no instance to normalize over'
            if kind in ('GN', 'LN', 'IN') and conv and conv.weight.requires_grad:
                norm.requires_grad_()  # BatchNorm is frozen for its statistics' sake
    for parent in list(model.modules()):
        _rename_norms(parent, became, NORMS[kind][1])
    names = dict(model.named_modules())
    return ({name: became[norm] for name, norm in names.items() if norm in became},
            {name: left[norm] for name, norm in names.items() if norm in left})


def _why_not(norm: nn.Module, kind: str) -> str:
    """Why ``norm`` cannot become a norm of that ``kind``; nothing if it can."""
    if not is_batch_norm(norm):
        return f'{type(norm).__name__} is a BatchNorm of unknown behaviour'
    if act_group_norm(norm) and kind not in ('GN', 'LN'):
        return f'{type(norm).__name__} has an activation inside, which there is no {kind} with; it stays as it is'
    return ''


def _describe(norm: nn.Module) -> str:
    numbers = [getattr(norm, 'num_groups', None), norm_channels(norm)]
    return f'{type(norm).__name__}({", ".join(str(number) for number in numbers if number is not None)})'


def _become_(norm: nn.Module, other: nn.Module, like: nn.Module | None = None) -> nn.Module:
    """Take the class and the content of ``other``, on the device of ``like``, but for what fits of one's own."""
    _fit_to(other, like or norm)
    for own, new in ((vars(norm)[name], vars(other)[name]) for name in ('_parameters', '_buffers')):
        missing = own is norm._parameters  # with affine=False; statistics that are missing are not kept so
        kept = {name: own[name] for name in new
                if name in own and new[name] is not None and (missing or own[name] is not None)}
        own.clear()
        own.update({**new, **kept})
    attributes = {name: value for name, value in vars(other).items() if not name.startswith('_')}
    same = {name: vars(norm)[name] for name in attributes.keys() & {'training', 'affine'}}
    for name in _BATCH_NORM_STATE:
        vars(norm).pop(name, None)
    vars(norm).update(attributes | same)
    norm._modules.update(other._modules)
    norm.__class__ = type(other)
    return norm


def _fit_to(other: nn.Module, norm: nn.Module) -> None:
    """Give ``other`` the device, dtype and ``requires_grad`` of ``norm``."""
    for tensor in (*norm.parameters(False), *norm.buffers(False)):
        if tensor.is_floating_point():
            other.to(tensor.device, tensor.dtype)
    other.requires_grad_(all(parameter.requires_grad for parameter in norm.parameters(False)))


def _wrap_(norm: nn.Module, kind: str, num_groups: int) -> nn.Module:
    """Make ``norm`` a batch-channel normalization whose first step it was."""
    other = _BATCH_CHANNEL_NORMS[kind](norm_channels(norm), num_groups=num_groups)
    first: nn.Module = object.__new__(type(norm))
    hooks = {name: value for name, value in vars(nn.Module()).items() if 'hooks' in name}  # those stay with ``norm``
    vars(first).update(vars(norm) | hooks | {name: dict(vars(norm)[name]) for name in _CONTENT})
    norm._parameters.clear()
    norm._buffers.clear()
    if kind == 'EstBN':
        momentum = 0.1 if first.momentum is None else first.momentum
        _become_(first, EstimatedBatchNorm(norm_channels(norm), first.eps, momentum))  # type: ignore[arg-type]
    _become_(norm, other, like=first).bn = first
    return norm


def _dimensions(kind: type[nn.Module]) -> int:
    return {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}.get(kind, 2)  # type: ignore[arg-type]


def _rename_norms(parent: nn.Module, replaced: Mapping[nn.Module, str], abbreviation: str) -> None:
    """Where ``parent`` keeps the name of its norm in an attribute (``norm1_name = 'bn1'``), name the new type."""
    for attribute, old in list(vars(parent).items()):
        if re.fullmatch(r'norm\d*_name', attribute) and parent._modules.get(old) in replaced and old.startswith('bn'):
            new = f'{abbreviation}{old[2:]}'
            renamed = {new if name == old else name: child for name, child in parent._modules.items()}
            parent._modules.clear()
            parent._modules.update(renamed)
            setattr(parent, attribute, new)

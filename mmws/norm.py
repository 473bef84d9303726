"""What counts as a normalization layer, and what replaces BatchNorm. Imports torch alone."""

from __future__ import annotations

import sys

from torch import nn

__all__ = ['group_count', 'is_batch_norm', 'is_layer_norm', 'is_norm', 'norm_channels', 'to_group_norm_']

# By name, so that the toolkit's classes are known without importing it. Exact classes only.
_BATCH_NORMS = {
    'torch.nn.modules.batchnorm.BatchNorm1d',
    'torch.nn.modules.batchnorm.BatchNorm2d',
    'torch.nn.modules.batchnorm.BatchNorm3d',
    'torch.nn.modules.batchnorm.SyncBatchNorm',
    'mmcv.ops.sync_bn.SyncBatchNorm',
    'mmengine.model.utils._BatchNormXd',
    'mmengine.utils.dl_utils.parrots_wrapper.SyncBatchNorm',
}
# With an activation inside: what stands in for it is the GroupNorm of that name beside it.
_BATCH_NORM_ACTS = {'timm.layers.norm_act.BatchNormAct2d': 'GroupNormAct'}
_BATCH_NORM_STATE = ('num_features', 'momentum', 'track_running_stats', 'process_group', 'group', 'group_size',
                     'stats_mode')


def is_batch_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a BatchNorm that GroupNorm can stand in for (a subclass of unknown behaviour is not)."""
    name = f'{type(module).__module__}.{type(module).__qualname__}'
    return name in _BATCH_NORMS or name in _BATCH_NORM_ACTS


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` normalizes over space by channel or group, and so undoes a filter's scale and shift.

    LayerNorm is not counted: the convolutions of LayerNorm networks stay plain.
    """
    return is_batch_norm(module) or isinstance(
        module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm))


def is_layer_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a LayerNorm, over all channels of each place."""
    return isinstance(module, nn.LayerNorm)


def norm_channels(norm: nn.Module) -> int:
    """Return the number of channels that ``norm`` takes."""
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features  # type: ignore[return-value]


def group_count(channels: int, at_most: int = 32, pointwise: bool = False) -> int:
    """Return the largest divisor of ``channels`` that is at most ``at_most``.

    Where there is one place per image to take statistics over (``pointwise``), groups of one channel would hold a
    single value, which has none: there the groups have 8 channels or more.

    Example:
        >>> group_count(64), group_count(48), group_count(20), group_count(37)
        (32, 24, 20, 1)
        >>> group_count(64, pointwise=True), group_count(32, pointwise=True)
        (32, 4)
    """
    groups = next(groups for groups in range(min(channels, at_most), 0, -1) if channels % groups == 0)
    return group_count(channels, max(channels // 8, 1)) if pointwise and groups == channels else groups


def to_group_norm_(norm: nn.Module, num_groups: int = 32, pointwise: bool = False) -> nn.Module:
    """Make a BatchNorm of any kind a GroupNorm, in place.

    The module stays the same object, with its affine parameters, hooks, ``training`` and sharing; the running
    statistics go. ``eps`` becomes GroupNorm's 1e-5. The number of groups is what :func:`group_count` says.
    GroupNorm: arXiv 1803.08494.

    Example:
        >>> norm = to_group_norm_(nn.BatchNorm2d(48))
        >>> type(norm).__name__, norm.num_groups, norm.num_channels
        ('GroupNorm', 24, 48)
    """
    channels = norm_channels(norm)
    for name in _BATCH_NORM_STATE:
        norm.__dict__.pop(name, None)
    for name in ('running_mean', 'running_var', 'num_batches_tracked'):
        norm._buffers.pop(name, None)
    norm.__class__ = _group_norm_class(norm)
    norm.num_channels, norm.num_groups, norm.eps = channels, group_count(channels, num_groups, pointwise), 1e-5  # type: ignore[assignment]
    return norm


def _group_norm_class(norm: nn.Module) -> type[nn.Module]:
    kind = type(norm)
    if name := _BATCH_NORM_ACTS.get(f'{kind.__module__}.{kind.__qualname__}'):
        norm._fast_norm = False  # type: ignore[assignment]
        act: type[nn.Module] = getattr(sys.modules[kind.__module__], name)
        return act
    return nn.GroupNorm

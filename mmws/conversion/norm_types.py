"""What counts as a normalization layer. Imports torch alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn

from mmws.layers.batch_channel_norm import BatchChannelNorm
from mmws.layers.switchable_norm import SwitchableNorm

__all__ = ['act_group_norm', 'batch_norms', 'is_batch_norm', 'is_layer_norm', 'is_norm', 'norm_channels']

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


def is_batch_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a BatchNorm that GroupNorm can stand in for (a subclass of unknown behaviour is not)."""
    name = f'{type(module).__module__}.{type(module).__qualname__}'
    return name in _BATCH_NORMS or name in _BATCH_NORM_ACTS


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` normalizes over space by channel or group, and so undoes a filter's scale and shift.

    LayerNorm is not counted: the convolutions of LayerNorm networks stay plain.
    """
    return is_batch_norm(module) or isinstance(
        module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm,
                 SwitchableNorm, BatchChannelNorm))


def batch_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the BatchNorm of every kind in ``model``, but for what is a part of a batch-channel normalization."""
    parts = {module.bn for module in model.modules() if isinstance(module, BatchChannelNorm)}
    for module in model.modules():
        if module not in parts and (is_batch_norm(module) or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            yield module


def is_layer_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a LayerNorm, over all channels of each place."""
    return isinstance(module, nn.LayerNorm)


def norm_channels(norm: nn.Module) -> int:
    """Return the number of channels that ``norm`` takes."""
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features  # type: ignore[return-value]


def act_group_norm(norm: nn.Module) -> type[nn.Module] | None:
    """Return the GroupNorm with an activation inside that stands in for ``norm``, None if that has no activation."""
    kind = type(norm)
    name = _BATCH_NORM_ACTS.get(f'{kind.__module__}.{kind.__qualname__}')
    return getattr(sys.modules[kind.__module__], name) if name else None

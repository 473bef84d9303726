"""Types of layers: convolutions, norms that count for placement, BatchNorm to replace."""

from __future__ import annotations

import sys

from torch import nn

from mmws.layers.batch_channel_norm import BatchChannelNorm
from mmws.layers.conv import WeightStandardized
from mmws.layers.switchable_norm import SwitchableNorm
from mmws.ops.torch_compat import BatchNorm, ConvNd, InstanceNorm

__all__ = ['act_group_norm', 'batch_norms', 'class_name', 'has_conv_sized_weight', 'is_any_norm', 'is_batch_norm',
           'is_conv', 'is_norm', 'is_trained', 'may_be_conv', 'norm_channels', 'only_normalizes']

_BATCH_NORMS = {f'torch.nn.modules.batchnorm.{name}' for name in
                ('BatchNorm1d', 'BatchNorm2d', 'BatchNorm3d', 'SyncBatchNorm')} | {
    'mmcv.ops.sync_bn.SyncBatchNorm', 'mmengine.model.utils._BatchNormXd',
    'mmengine.utils.dl_utils.parrots_wrapper.SyncBatchNorm'}
# BatchNorm with a built-in activation: the GroupNorm that replaces it, defined in the same Python file.
_BATCH_NORM_ACTS = {'timm.layers.norm_act.BatchNormAct2d': 'GroupNormAct'}
_KNOWN_NORMS = 'torch.nn.modules.', 'mmws.layers.'  # Python files


def class_name(module: nn.Module) -> str:
    """Return the full name of the class of ``module``, for example ``'torch.nn.modules.conv.Conv2d'``.

    It identifies classes of mmcv, mmengine and timm without an import. Subclasses, of unknown behaviour, do not match.
    """
    return f'{type(module).__module__}.{type(module).__qualname__}'


def is_conv(module: nn.Module) -> bool:
    """Return whether ``module`` is a convolution: of torch, a subclass, or another library's, as mmcv's deformable."""
    return isinstance(module, (ConvNd, WeightStandardized)) or (
        any('Conv' in kind.__name__ for kind in type(module).__mro__) and hasattr(module, 'out_channels')
        and isinstance(module._parameters.get('weight'), nn.Parameter))


def is_trained(conv: nn.Module) -> bool:
    """Return whether the weight of ``conv`` trains; False if it has none at the moment."""
    return bool(getattr(getattr(conv, 'weight', None), 'requires_grad', False))


def has_conv_sized_weight(module: nn.Module) -> bool:
    """Return whether ``module`` has a parameter ``weight`` that a convolution function could use."""
    weight = module._parameters.get('weight')
    return weight is not None and not isinstance(weight, nn.UninitializedParameter) and 3 <= weight.dim() <= 5


def may_be_conv(module: nn.Module) -> bool:
    """Return whether ``module`` is a convolution, or may be one of an unknown class."""
    return is_conv(module) or has_conv_sized_weight(module)


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether ``module`` is a BatchNorm that GroupNorm can replace; an unknown subclass is not."""
    return class_name(module) in _BATCH_NORMS or class_name(module) in _BATCH_NORM_ACTS


def is_norm(module: nn.Module) -> bool:
    """Return whether ``module`` normalizes over space per channel or group, which cancels a filter's scale and shift.

    LayerNorm does not count: the convolutions of LayerNorm networks stay plain.
    """
    return is_batch_norm(module) or isinstance(
        module, (BatchNorm, nn.GroupNorm, InstanceNorm, SwitchableNorm, BatchChannelNorm))


def is_any_norm(module: nn.Module) -> bool:
    """Return whether ``module`` is a norm, LayerNorm included."""
    return is_norm(module) or isinstance(module, nn.LayerNorm)


def only_normalizes(module: nn.Module) -> bool:
    """Return whether ``module`` is a norm whose forward is known: it normalizes its first argument, and no more.

    A subclass or a patched object may have another forward, with a shortcut or a scale that convolutions compute.
    LayerNorm, which does not count without ``include``, is a norm in any case.
    """
    patched = 'forward' in vars(module) and not hasattr(module.forward, 'stands_for_norm')  # of a dry run's copy
    known = str(getattr(type(module).forward, '__module__', '')).startswith(_KNOWN_NORMS)
    return isinstance(module, nn.LayerNorm) or (not patched and (is_batch_norm(module) or (is_norm(module) and known)))


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return each BatchNorm of ``model``, unknown subclasses included, but not the ``bn`` of a batch-channel norm."""
    parts = {module.bn for module in model.modules() if isinstance(module, BatchChannelNorm)}
    return [module for module in model.modules()
            if module not in parts and (is_batch_norm(module) or isinstance(module, BatchNorm))]


def norm_channels(norm: nn.Module) -> int:
    """Return the number of input channels of ``norm``."""
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features  # type: ignore[return-value]


def act_group_norm(norm: nn.Module) -> type[nn.GroupNorm] | None:
    """Return the GroupNorm with a built-in activation that replaces ``norm``, None if ``norm`` has no activation."""
    name = _BATCH_NORM_ACTS.get(class_name(norm))
    return getattr(sys.modules[type(norm).__module__], name) if name else None

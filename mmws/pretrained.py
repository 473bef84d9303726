"""Pretrained weights in configs: which of them fit a network that was converted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmws.conv import WeightStandardized

__all__ = ['GN_WS_WEIGHTS', 'warn_about_batch_norm_weights']

GN_WS_WEIGHTS = ('open-mmlab://jhu/resnet50_gn_ws', 'open-mmlab://jhu/resnet101_gn_ws',
                 'open-mmlab://jhu/resnext50_32x4d_gn_ws', 'open-mmlab://jhu/resnext101_32x4d_gn_ws')
"""ImageNet weights trained with GroupNorm and Weight Standardization by the authors: v1, pytorch style, RGB input."""


def warn_about_batch_norm_weights(model: nn.Module) -> None:
    """Warn of weights that were trained with BatchNorm: now where their name tells, else when they are loaded.

    Convolutions trained without Weight Standardization compute something else under it, and a BatchNorm's
    parameters have no place in GroupNorm; mmengine would load what fits by name and carry on.
    """
    for name, module, checkpoint in _pretrained(model):
        if '://' in checkpoint and 'gn_ws' not in checkpoint:
            print_log(f'{name or "the model"}: the weights {checkpoint} (init_cfg) were not trained with GroupNorm and '
                      f'Weight Standardization and do not fit the converted network. {_advice(checkpoint)}',
                      'current', logging.WARNING)
        _watch(module)
    _watch(model)


def _watch(module: nn.Module) -> None:
    module.register_load_state_dict_pre_hook(_warn_of_statistics)  # type: ignore[no-untyped-call]


def _pretrained(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The modules with standardized convolutions that ask for weights, with their names and the weights."""
    for name, module in model.named_modules():
        init_cfg: Any = getattr(module, 'init_cfg', None) or {}
        for entry in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
            if entry.get('type') == 'Pretrained' and any(isinstance(m, WeightStandardized) for m in module.modules()):
                yield name, module, entry['checkpoint']


def _advice(checkpoint: str) -> str:
    for weights in GN_WS_WEIGHTS:
        if weights == f'open-mmlab://jhu/{checkpoint.rpartition("/")[2]}_gn_ws':
            return f"Use checkpoint='{weights}' in its place."
    return (f'Published GN+WS weights are {", ".join(GN_WS_WEIGHTS)} (v1, pytorch style, RGB input); '
            'for any other network train from scratch with init_cfg=None.')


def _warn_of_statistics(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A load_state_dict pre-hook: a checkpoint's running statistics have no place where BatchNorm was replaced."""
    buffers = {f'{prefix}{name}' for name, _ in module.named_buffers()}
    homeless = [key for key in state_dict
                if key.startswith(prefix) and key.endswith('.running_mean') and key not in buffers]
    if homeless:
        print_log(f'the checkpoint holds BatchNorm statistics ({homeless[0]} and {len(homeless) - 1} more) that this '
                  'network has no place for: it was trained without GroupNorm and Weight Standardization, its norms '
                  f'are not loaded and its convolutions mean something else here. {_advice("")}', 'current',
                  logging.WARNING)

"""Warnings where the training of a BatchNorm network would be lost: at its conversion, and when its weights load."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.layer_types import batch_norms
from mmws.conversion.module_tree import module_names
from mmws.ops.torch_compat import add_load_state_dict_pre_hook

__all__ = ['stop_watching_loads_', 'trained_batch_norms', 'unused_statistics', 'warn_of_lost_training',
           'watch_loads_']

ADVICE = ('Convert with mmws.transplant_ (a checkpoint: with tools/transplant.py), which carries much of the training '
          'over; or train the converted network again before you use it, with a small learning rate; or load weights '
          'that were trained with the same norm and weight form')


def trained_batch_norms(model: nn.Module) -> dict[nn.Module, str]:
    """Return each BatchNorm with statistics or an affine map of a training, and its name.

    Weights converted from Caffe2 have the statistics in the affine map: their mean is 0, their variance 1. Scales that
    are the same in each channel, or shifts, can be of an initialization.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
        >>> _ = net[1](torch.randn(2, 4, 3, 3))
        >>> list(trained_batch_norms(net).values())
        ['1']
    """
    names = module_names(model)
    return {norm: names[norm] for norm in batch_norms(model)
            if any(_is_trained(name, tensor) for name, tensor in norm.named_buffers(recurse=False))
            or (norm.running_mean is not None and _varies(norm.weight) and _varies(norm.bias))}


def warn_of_lost_training(model: nn.Module, names: Collection[str]) -> None:
    """Warn of the trained BatchNorms ``names`` whose statistics the conversion of ``model`` drops or makes wrong."""
    if names:
        warnings.warn(f'{type(model).__name__} was trained with BatchNorm: the statistics of {_first(names)} do not '
                      f'fit the converted network, and its outputs are not those of before. {ADVICE}.', stacklevel=3)


def watch_loads_(model: nn.Module, replaced: Collection[nn.Module]) -> None:
    """Let ``model``, and each part of it that holds a replaced BatchNorm, warn when BatchNorm weights load into it."""
    for module in model.modules():
        if module not in replaced and any(part in replaced for part in module.modules()):
            add_load_state_dict_pre_hook(module, _warn_at_loading if module is model else _warn_at_loading_alone)


def stop_watching_loads_(model: nn.Module) -> None:
    """Undo :func:`watch_loads_`: other code warns."""
    for module in model.modules():
        hooks: dict[int, Any] = module._load_state_dict_pre_hooks
        for key in [key for key, hook in hooks.items() if hook.hook in (_warn_at_loading, _warn_at_loading_alone)]:
            del hooks[key]


def unused_statistics(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> list[str]:
    """Return the keys of the running means in ``state_dict`` that ``module`` has no buffer for."""
    used = {f'{prefix}{name}' for name, _ in module.named_buffers()}
    return [key for key in state_dict
            if key.startswith(prefix) and key.endswith('running_mean') and key not in used]


def _is_trained(name: str, tensor: Tensor) -> bool:
    """Return whether a buffer of a BatchNorm differs from its initial value."""
    initial = {'running_mean': 0, 'running_var': 1, 'num_batches_tracked': 0}.get(name)
    return initial is not None and _has_values(tensor) and bool(torch.any(tensor != initial))


def _varies(tensor: Any) -> bool:
    """Return whether the channels of a BatchNorm's scale or shift differ."""
    return _has_values(tensor) and bool(torch.any(tensor != tensor.flatten()[:1]))


def _has_values(tensor: Any) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta


def _warn_at_loading(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Warn if a checkpoint has trained statistics of replaced BatchNorms; a load_state_dict pre-hook."""
    unused = [key for key in unused_statistics(module, state_dict, prefix)
              if _is_trained('running_mean', state_dict[key]) or all(
                  _varies(state_dict.get(key[:-len('running_mean')] + name)) for name in ('weight', 'bias'))]
    if unused:
        warnings.warn(f'the weights for {type(module).__name__} were trained with BatchNorm: {_first(unused)} do not '
                      f'fit the other norms of the converted network. {ADVICE}.', stacklevel=2)


def _warn_at_loading_alone(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Warn as :func:`_warn_at_loading` does, unless the module that contains ``module`` loads, and warns."""
    if not prefix:
        _warn_at_loading(module, state_dict, prefix)


def _first(names: Collection[str]) -> str:
    others = f' and {len(names) - 1} more' if len(names) > 1 else ''
    return f'{next(iter(names)) or "the network itself"}{others}'

"""Copies of a network for a dry run."""

from __future__ import annotations

import copy
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.layer_types import has_conv_sized_weight, only_normalizes
from mmws.conversion.swap_convs import has_known_forward, standardizes_itself
from mmws.conversion.weight_use import substitute_weight_
from mmws.ops.torch_compat import clear_backward_hooks, tree_leaves

__all__ = ['copy_for_run', 'copy_to_meta']


def copy_to_meta(model: nn.Module, pointwise: set[nn.Module]) -> nn.Module:
    """Copy ``model`` to the meta device without hooks, for :func:`mmws.conversion.dry_run.dry_run`.

    Layers without a meta kernel get another forward, and convolutions of unknown classes another weight. The norms
    whose input has a single value per channel and image add themselves to ``pointwise`` when they run.

    Raises:
        RuntimeError: if the copy has another number of modules. Any exception of a module that cannot be copied.
    """
    memo: dict[int, Any] = {}
    attributes = [value for value in _tensor_attributes(model)  # a number may decide a branch
                  if not value.is_leaf or (value.is_floating_point() and value.dim())]
    for tensor in chain(model.parameters(), model.buffers(), attributes):
        empty = torch.empty_like(tensor, device='meta')
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    replica = copy.deepcopy(model, memo)
    _prepare_(replica, model, pointwise)
    for module in replica.modules():
        if has_known_forward(module) and type(module).__module__.startswith('mmcv.ops.'):
            module.forward = partial(_deformable_conv_output, module)
    return replica


def copy_for_run(model: nn.Module, pointwise: set[nn.Module]) -> nn.Module:
    """Copy ``model`` with its values; else as :func:`copy_to_meta`, which also names the exceptions."""
    # torch refuses to copy computed tensors, such as pruned weights and outputs that a module keeps.
    computed = [value for value in _tensor_attributes(model) if not value.is_leaf]
    replica = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    _prepare_(replica, model, pointwise)
    return replica


def _tensor_attributes(model: nn.Module) -> list[Tensor]:
    """Return the tensors that are neither parameters nor buffers."""
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]


def _prepare_(replica: nn.Module, model: nn.Module, pointwise: set[nn.Module]) -> None:
    copied, expected = len(list(replica.modules())), len(list(model.modules()))
    if copied != expected:
        raise RuntimeError(f'copy.deepcopy gives a network with {copied} modules, expected {expected}: a module has a '
                           '__deepcopy__ of its own')
    if set(replica.modules()) & set(model.modules()):
        raise RuntimeError('copy.deepcopy returns a module of the network itself, which has a __deepcopy__ of its own')
    for module in replica.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        clear_backward_hooks(module)
        if only_normalizes(module):
            forward: Any = partial(_norm_output, module, pointwise)
            forward.stands_for_norm = True
            module.forward = forward
        elif has_conv_sized_weight(module) and not has_known_forward(module) and not standardizes_itself(module):
            substitute_weight_(module)


def _deformable_conv_output(conv: Any, x: Tensor, *others: Tensor) -> Tensor:
    return nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _norm_output(norm: nn.Module, pointwise: set[nn.Module], *args: Any, **kwargs: Any) -> Tensor:
    input = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    if input.shape[2:].numel() == 1:
        pointwise.add(norm)
    if not input.is_meta:
        try:
            return type(norm).forward(norm, *args, **kwargs)  # type: ignore[no-any-return]
        except (ValueError, RuntimeError):  # one value per channel in training, SyncBN on the CPU
            return torch.zeros_like(input)
    return torch.empty_like(input)

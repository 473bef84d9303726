"""Placement from the module tree, the fallback for convolutions that the dry run does not reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from mmws.conversion.decision import LAYER_NORM_REASON, Decision
from mmws.conversion.layer_types import is_conv, is_norm, norm_channels, only_normalizes

__all__ = ['decide_from_tree', 'module_names']


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """Return the name of each module of ``model``; the first name if a module is registered several times."""
    return {module: name for name, module in model.named_modules()}


def decide_from_tree(model: nn.Module) -> dict[nn.Module, Decision]:
    """Decide for each convolution of ``model`` by the module that follows it in the module tree.

    The modules of an ``nn.Sequential`` run in order, those of mmcv's ``ConvModule`` in the order of its attribute
    ``order``. In any other module, a norm counts as the consumer of the convolution registered just before it (as
    in ``conv1, bn1, conv2, bn2``). If a convolution is registered at several places, a norm must follow at each.
    The decisions are in the order of ``model.modules()``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> [decision.reason for decision in decide_from_tree(net).values()]
        ['', 'no norm follows: last layer of its block']
    """
    decisions = {module: Decision() for module in model.modules() if is_conv(module)}
    for sequence in _sequences(model):
        for conv, following in zip(sequence, [*sequence, None][1:]):
            if conv in decisions:
                reason = _reason_to_skip(conv, following)
                decisions[conv].reason = decisions[conv].reason or reason
                if following is not None and reason in ('', LAYER_NORM_REASON):
                    decisions[conv].norms.append(following)
    return decisions


def _reason_to_skip(conv: nn.Module, following: nn.Module | None) -> str:
    if following is None:
        return 'no norm follows: last layer of its block'
    if isinstance(following, nn.LayerNorm):
        return LAYER_NORM_REASON
    if not is_norm(following):
        return f'no norm follows: {type(following).__name__}'
    if not only_normalizes(following):
        return f'no norm follows: {type(following).__name__} has a forward of its own, which did not run'
    channels = getattr(conv, 'out_channels', norm_channels(following))
    if norm_channels(following) != channels:
        return f'the next norm has {norm_channels(following)} channels, the convolution {channels}'
    return ''


def _sequences(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield lists of modules that run one after another, as far as the tree shows it."""
    sequence = _flattened(module)
    yield sequence
    for child in sequence:
        if child is not module and next(child.children(), None) is not None:
            yield from _sequences(child)


def _flattened(module: nn.Module) -> list[nn.Module]:
    """Return the children in order, with nested sequential modules replaced by their own children."""
    children = _children_in_order(module)
    if not isinstance(module, nn.Sequential):
        return children or [module]
    return [inner for child in children
            for inner in (_flattened(child) if isinstance(child, nn.Sequential) or _is_conv_module(child) else [child])]


def _is_conv_module(module: nn.Module) -> bool:
    """Return whether ``module`` is like mmcv's ConvModule: ``order`` names the order of its conv, norm and act."""
    order = getattr(module, 'order', None)
    return isinstance(order, tuple) and set(order) == {'conv', 'norm', 'act'} and hasattr(module, 'conv')


def _children_in_order(module: Any) -> list[nn.Module]:
    children = module.children()
    if isinstance(module, nn.Sequential):
        children = module._modules.values()  # children() omits a repeated module, which runs at each of its places
    elif _is_conv_module(module):
        children = [getattr(module, 'activate' if step == 'act' else step, None) for step in module.order]
    return [child for child in children if child is not None]

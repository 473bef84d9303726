"""Which convolutions feed a normalization layer, as far as the module tree tells. Imports torch alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mmws.conversion.norm_types import is_layer_norm, is_norm, norm_channels

__all__ = ['LAYER_NORM', 'Verdict', 'is_conv', 'read_tree']

LAYER_NORM = 'a LayerNorm takes its output, which counts only where `include` asks for it'


def is_conv(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution: of torch, a subclass of one, or one of its own such as mmcv's deformable."""
    weight = getattr(module, 'weight', None)
    return isinstance(module, nn.modules.conv._ConvNd) or (
        'Conv' in type(module).__name__ and hasattr(module, 'out_channels') and isinstance(weight, nn.Parameter))


@dataclass
class Verdict:
    """What becomes of a convolution's output.

    Attributes:
        norms: the normalization layers that take it.
        reason: why the convolution must stay plain; empty if norms alone take its output.
        ran: whether that was seen in a run, or else read off the module tree.
    """

    norms: list[nn.Module] = field(default_factory=list)
    reason: str = ''
    ran: bool = False


def read_tree(model: nn.Module) -> dict[nn.Module, Verdict]:
    """Judge each convolution of ``model`` by where it stands: does a normalization layer follow, and nothing else?

    The modules of an ``nn.Sequential`` run one after another, those of mmcv's
    ``ConvModule`` in the order it names, and in any other module a norm takes the output of the convolution
    registered right before it (as in ``conv1, bn1, conv2, bn2``). A convolution that stands in several places
    feeds a norm only if it does so in each of them.

    Returns:
        The verdict on each convolution, in the order of ``model.modules()``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> [verdict.reason for verdict in read_tree(net).values()]
        ['', 'no norm takes its output: it ends its block']
    """
    found = {module: Verdict() for module in model.modules() if is_conv(module)}
    for run in _runs(model):
        for conv, following in zip(run, [*run, None][1:], strict=True):
            if conv in found:
                reason = _why_plain(conv, following)
                found[conv].reason = found[conv].reason or reason
                found[conv].norms += [following] if following is not None and reason in ('', LAYER_NORM) else []
    return found


def _why_plain(conv: nn.Module, following: nn.Module | None) -> str:
    if following is None:
        return 'no norm takes its output: it ends its block'
    if is_layer_norm(following):
        return LAYER_NORM
    if not is_norm(following):
        return f'no norm takes its output: {type(following).__name__} follows'
    if norm_channels(following) != conv.out_channels:
        return f'the norm that follows has {norm_channels(following)} channels, not its {conv.out_channels}'
    return ''


def _runs(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield the runs of modules that are executed in a row, as far as the tree tells."""
    run = _in_order(module)
    yield run
    for child in run:
        if child is not module and next(child.children(), None) is not None:
            yield from _runs(child)


def _in_order(module: nn.Module) -> list[nn.Module]:
    """The modules in ``module``, with what is certain to run in a row laid flat."""
    children = _children_in_order(module)
    if not isinstance(module, nn.Sequential):
        return children or [module]
    return [inner for child in children for inner in (_in_order(child) if _runs_in_a_row(child) else [child])]


def _runs_in_a_row(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) or _is_conv_module(module)


def _is_conv_module(module: nn.Module) -> bool:
    """mmcv's ConvModule or one of its kind: it names the order in which it runs its conv, norm and activation."""
    order = getattr(module, 'order', None)
    return isinstance(order, tuple) and set(order) == {'conv', 'norm', 'act'} and hasattr(module, 'conv')


def _children_in_order(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential):
        return [child for child in module._modules.values() if child is not None]  # one that stands twice runs twice
    if not _is_conv_module(module):
        return list(module.children())
    attribute = {'conv': 'conv', 'norm': 'norm', 'act': 'activate'}
    order: Any = module.order
    parts = [getattr(module, attribute[step], None) for step in order]
    return [part for part in parts if part is not None]

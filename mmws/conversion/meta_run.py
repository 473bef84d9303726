"""A run of a copy of any network, on the meta device: no data, no arithmetic. Imports torch alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.module_tree import is_conv
from mmws.conversion.norm_types import is_layer_norm, is_norm
from mmws.conversion.output_recorder import OutputRecorder
from mmws.errors import FOREIGN_ERRORS

__all__ = ['DryRun', 'run', 'run_copy']

@dataclass
class DryRun:
    """What a run showed.

    Attributes:
        consumers: of each convolution that ran, as :class:`OutputRecorder` has them. One whose
            output left a part,
            with nobody to be seen who took it, is not among them.
        pointwise: the norms that took a single value per channel and image.
    """

    consumers: dict[nn.Module, list[nn.Module | str]] = field(default_factory=dict)
    pointwise: set[nn.Module] = field(default_factory=set)


def run_copy(model: nn.Module) -> DryRun:
    """Run a copy of ``model`` on the meta device, in training and in evaluation, as far as it can be run.

    A toolkit's detector or segmenter runs through ``extract_feat``, its heads on what that gives; any other network on
    an image. What cannot be run as a whole is run in parts, on inputs with the channels that the part's first
    convolution takes.
    """
    found = DryRun()
    try:
        twin = _copy_without_data(model, found.pointwise)
    except FOREIGN_ERRORS:
        return found
    original = dict(zip(twin.modules(), model.modules(), strict=True))
    for training in (True, False):
        twin.train(training)  # not chained: a toolkit's override need not return the module
        with torch.device('meta'):
            ran = run(twin)
        for conv, consumers in ran.items():
            known = found.consumers.setdefault(original[conv], [])
            translated = [original[consumer] if isinstance(consumer, nn.Module) else consumer for consumer in consumers]
            known += [consumer for consumer in translated if consumer not in known]
    found.pointwise = {original[norm] for norm in found.pointwise}
    return found


def run(model: nn.Module) -> dict[nn.Module, list[nn.Module | str]]:
    """Run ``model`` itself, on empty tensors, and return the consumers as in :class:`DryRun`."""
    with OutputRecorder(model) as recorder, torch.no_grad():
        whole, _ = _explore(model, recorder, None)
    return {conv: consumers for conv, consumers in recorder.consumers.items() if consumers or conv in whole}


def _copy_without_data(model: nn.Module, pointwise: set[nn.Module]) -> nn.Module:
    """Copy ``model`` to the meta device, without hooks, and with stand-ins for what has no kernel there."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device='meta')
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if is_norm(module) or is_layer_norm(module):
            module.forward = partial(_normalize_like, module, pointwise)
        elif is_conv(module) and type(module).__module__.startswith('mmcv.ops.'):
            module.forward = partial(_convolve_like, module)
    return twin


def _convolve_like(conv: Any, x: Tensor, *others: Tensor) -> Tensor:
    """What ``conv``, a deformable convolution, gives: the right shape."""
    return nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _normalize_like(norm: nn.Module, pointwise: set[nn.Module], x: Tensor) -> Tensor:
    if x.shape[2:].numel() == 1:
        pointwise.add(norm)
    return torch.empty_like(x)


def _explore(module: nn.Module, recorder: OutputRecorder, features: Any) -> tuple[set[nn.Module], Any]:
    """Run ``module``, and of its children those that did not run with it.

    Returns:
        The convolutions that ran with ``module``, or in a head of this detector or of one in it, so that nothing in
        the network but what was seen can take their output; and what it gave, for the modules after it.
    """
    convs = {inner for inner in module.modules() if is_conv(inner)}
    if module in convs or convs <= recorder.consumers.keys():
        return set(), features
    ran = False
    for attempt in _attempts(module, features):
        ran, result = _try(attempt, recorder)
        if ran:
            features = result
            break
    together = convs & recorder.consumers.keys() if ran else set()
    for child in module.children():
        inside, features = _explore(child, recorder, features)
        if hasattr(module, 'extract_feat') or hasattr(child, 'extract_feat'):
            together |= inside
    return together, features


def _try(attempt: Callable[[], Any], recorder: OutputRecorder) -> tuple[bool, Any]:
    before = {conv: list(consumers) for conv, consumers in recorder.consumers.items()}
    try:
        return True, attempt()
    except FOREIGN_ERRORS:
        recorder.consumers = before
        return False, None


def _attempts(module: Any, features: Any) -> Iterator[Callable[[], Any]]:
    """Ways to run ``module``, the likeliest first."""
    needed = [parameter for parameter in inspect.signature(module.forward).parameters.values()
              if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    for size in _sizes(module):
        levels = _inputs(module, size)
        if hasattr(module, 'extract_feat'):
            yield partial(module.extract_feat, levels[0])
        elif features is not None:
            yield partial(module, *[features] * len(needed))
            features = None
        yield partial(module, *[levels[0]] * len(needed))
        yield partial(module, *[levels] * len(needed))


def _sizes(module: nn.Module) -> Iterator[Any]:
    """Of what ``module`` may take: an image, features, regions."""
    first: Any = next(inner for inner in module.modules() if is_conv(inner))
    if first.in_channels <= 4:
        for wanted in [inner.img_size for inner in module.modules() if hasattr(inner, 'img_size')][:1]:
            yield wanted[0] if isinstance(wanted, (list, tuple)) else wanted  # of a transformer that takes no other
        yield 512
    yield from (64, 14, 7)


def _inputs(module: nn.Module, size: int) -> list[Tensor]:
    """Levels of a pyramid, the finest first, with the channels that ``module`` takes."""
    first: Any = next(inner for inner in module.modules() if is_conv(inner))
    channels = getattr(module, 'in_channels', None)
    if not isinstance(channels, (list, tuple)):
        channels = [first.in_channels] * 5
    space = first.weight.dim() - 2
    return [torch.empty(2, count, *[max(size >> level, 2)] * space) for level, count in enumerate(channels)]

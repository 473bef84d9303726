"""Dry run of a copy of any network on the meta device, which needs no data and does no arithmetic."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.layer_types import is_conv, is_norm
from mmws.conversion.output_recorder import Consumers, OutputRecorder
from mmws.errors import FOREIGN_ERRORS

__all__ = ['dry_run', 'run_in_parts']


def dry_run(model: nn.Module) -> tuple[Consumers, set[nn.Module]]:
    """Run a copy of ``model`` on the meta device, in training mode and in evaluation mode.

    A detector or segmenter of a toolkit runs through ``extract_feat``, and its heads run on the features. Any other
    network runs on an image. If the whole network does not run, its parts run, each on inputs with the channels of its
    first convolution.

    Returns:
        The consumers of each convolution that ran, and the norms whose input has a single value per channel and image.
        If a part ran alone, a convolution whose output leaves it is omitted: its consumers are unknown.
    """
    found: Consumers = {}
    pointwise: set[nn.Module] = set()
    try:
        replica = _copy_to_meta(model, pointwise)
    except FOREIGN_ERRORS:
        return found, pointwise
    modules, originals = list(replica.modules()), list(model.modules())
    if len(modules) != len(originals):  # a module copies itself in its own way
        return found, pointwise
    original: dict[Any, Any] = dict(zip(modules, originals))
    for training in (True, False):
        replica.train(training)  # not chained: a toolkit's override may return None
        try:
            with torch.device('meta'):
                recorded = run_in_parts(replica)
        except FOREIGN_ERRORS:
            continue
        for conv, consumers in recorded.items():
            known = found.setdefault(original[conv], [])
            known += [consumer for other in consumers if (consumer := original.get(other, other)) not in known]
    return found, {original[norm] for norm in pointwise}


def run_in_parts(model: nn.Module) -> Consumers:
    """Run ``model`` itself on empty tensors, in parts if need be, and return the consumers as :func:`dry_run` does."""
    with OutputRecorder(model) as recorder, torch.no_grad():
        complete, _ = _run(model, recorder, None)
    return {conv: consumers for conv, consumers in recorder.consumers.items() if consumers or conv in complete}


def _copy_to_meta(model: nn.Module, pointwise: set[nn.Module]) -> nn.Module:
    """Copy ``model`` to the meta device without hooks; replace the forward of layers without a meta kernel."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device='meta')
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    replica = copy.deepcopy(model, memo)
    for module in replica.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if is_norm(module) or isinstance(module, nn.LayerNorm):
            module.forward = partial(_norm_output, module, pointwise)
        elif is_conv(module) and type(module).__module__.startswith('mmcv.ops.'):
            module.forward = partial(_deformable_conv_output, module)
    return replica


def _deformable_conv_output(conv: Any, x: Tensor, *others: Tensor) -> Tensor:
    return nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _norm_output(norm: nn.Module, pointwise: set[nn.Module], input: Tensor) -> Tensor:
    if input.shape[2:].numel() == 1:
        pointwise.add(norm)
    return torch.empty_like(input)


def _run(module: nn.Module, recorder: OutputRecorder, features: Any) -> tuple[set[nn.Module], Any]:
    """Run ``module``, then each child with convolutions that did not run.

    Returns:
        The convolutions with a complete record: they ran with the whole ``module``, or in a head of a detector. And the
        output, which is the input of the modules after it.
    """
    convs = {inner for inner in module.modules() if is_conv(inner)}
    if module in convs or convs <= recorder.consumers.keys():
        return set(), features
    complete: set[nn.Module] = set()
    for attempt in _attempts(module, features):
        try:
            with recorder.attempt():
                features = attempt()
            complete = convs & recorder.consumers.keys()
            break
        except FOREIGN_ERRORS:
            pass
    for child in module.children():
        complete_in_child, features = _run(child, recorder, features)
        if hasattr(module, 'extract_feat') or hasattr(child, 'extract_feat'):
            complete |= complete_in_child
    return complete, features


def _attempts(module: Any, features: Any) -> Iterator[Callable[[], Any]]:
    """Yield calls of ``module`` on different inputs, the most likely to succeed first.

    Yield fewer if an attribute of an unknown network is not what its name says.
    """
    try:
        yield from _calls(module, features)
    except FOREIGN_ERRORS:
        return


def _calls(module: Any, features: Any) -> Iterator[Callable[[], Any]]:
    needed = [parameter for parameter in inspect.signature(module.forward).parameters.values()
              if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    for levels in _inputs(module):
        if callable(getattr(module, 'extract_feat', None)):
            yield partial(module.extract_feat, levels[0])
        elif features is not None:
            yield partial(module, *[features] * len(needed))
            features = None
        yield partial(module, *[levels[0]] * len(needed))
        yield partial(module, *[levels] * len(needed))


def _inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Yield feature pyramids of different sizes, finest level first, with the channels that ``module`` expects."""
    first: Any = next(inner for inner in module.modules() if is_conv(inner))
    sizes = [64, 14, 7]  # of features and regions
    in_channels = getattr(first, 'in_channels', first.weight.shape[1])
    if in_channels <= 4:
        # Some transformers take images of one size only.
        fixed: list[Any] = [getattr(inner, 'img_size', None) for inner in module.modules()]
        fixed = [size[0] if isinstance(size, (list, tuple)) else size for size in fixed if size]
        sizes = [*[size for size in fixed if isinstance(size, int)][:1], 512, *sizes]
    channels: Any = getattr(module, 'in_channels', None)
    if not isinstance(channels, (list, tuple)) or not all(isinstance(count, int) for count in channels):
        channels = [in_channels] * 5
    for size in sizes:
        yield [torch.empty(2, count, *[max(size >> level, 2)] * (first.weight.dim() - 2), dtype=first.weight.dtype)
               for level, count in enumerate(channels)]

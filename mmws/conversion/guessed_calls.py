"""Calls of any network on zeros of sizes that are guessed from its layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.layer_types import is_conv, may_be_conv

__all__ = ['guessed_calls', 'is_toolkit_model']


def guessed_calls(module: Any, features: Any, gradients: bool = False) -> Iterator[Callable[[], Any]]:
    """Yield calls of ``module`` on different inputs, the most likely to succeed first.

    Yield fewer if an attribute of an unknown network is not what its name says. With ``gradients``, the inputs require
    a gradient, as inside a network that trains.
    """
    try:
        yield from _calls(module, features, gradients)
    except Exception:  # the network is foreign code and may raise anything
        return


def is_toolkit_model(module: nn.Module) -> bool:
    """Return whether ``module`` is a model of a toolkit: features leave its ``extract_feat`` for its heads."""
    return callable(getattr(module, 'extract_feat', None)) and hasattr(module, 'data_preprocessor')


def _calls(module: Any, features: Any, gradients: bool) -> Iterator[Callable[[], Any]]:
    needed = [parameter for parameter in inspect.signature(module.forward).parameters.values()
              if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    for levels in chain.from_iterable(_inputs(module, first) for first in _first_convs(module)):
        levels = [level.requires_grad_().clone() if gradients else level for level in levels]  # no leaves
        if is_toolkit_model(module):
            yield partial(module.extract_feat, levels[0])
        elif features is not None:
            yield partial(module, *[features] * len(needed))
            features = None
        yield partial(module, *[levels[0]] * len(needed))
        yield partial(module, *[levels] * len(needed))


def _first_convs(module: nn.Module) -> list[nn.Module]:
    """Return the first module with filters, and the first convolution by its class if that is another one."""
    found = [next(filter(kind, module.modules()), None) for kind in (may_be_conv, is_conv)]
    return list(dict.fromkeys(filter(None, found))) or [nn.Conv2d(3, 3, 1)]


def _inputs(module: nn.Module, first: Any) -> Iterator[list[Tensor]]:
    """Yield feature pyramids of different sizes, finest level first, with the channels that ``first`` expects."""
    sizes = [64, 14, 7]  # of features and regions
    in_channels = first.in_channels if hasattr(first, 'in_channels') else first.weight.shape[1]
    if in_channels <= 4:
        # Some transformers take images of one size only.
        fixed: list[Any] = [getattr(inner, 'img_size', None) for inner in module.modules()]
        fixed = [size[0] if isinstance(size, (list, tuple)) else size for size in fixed if size]
        largest = 512 if first.weight.dim() < 5 else 256  # more voxels would not fit in the memory
        sizes = [*[size for size in fixed if isinstance(size, int)][:1], largest, 224, 64, 32, 28, 14, 7]
    channels: Any = getattr(module, 'in_channels', None)
    if not isinstance(channels, (list, tuple)) or not all(isinstance(count, int) for count in channels):
        channels = [in_channels] * 5
    clip = 16, 64 if in_channels <= 4 else 14  # TSM's batch is clips of 8 or 16 frames
    for batch, size in [*((2, size) for size in sizes), clip]:
        yield [torch.zeros(batch, count, *[max(size >> level, 2)] * (first.weight.dim() - 2), dtype=first.weight.dtype)
               for level, count in enumerate(channels)]

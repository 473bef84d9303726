"""The standardized weight of a layer in a compiled network at inference: kept outside of the graph, refreshed in it."""

from __future__ import annotations

import itertools
import mmap
import weakref
from typing import Any

import torch
from torch import Tensor

from mmws.layers.weight_cache import WeightCache

__all__ = ['CompiledWeight']

_caches: weakref.WeakValueDictionary[int, WeightCache] = weakref.WeakValueDictionary()  # by their number
_numbers = itertools.count()


class CompiledWeight:
    """Memory for the standardized weight, and the cache that knows whether the content is up to date.

    torch.compile cannot trace a cache. It sees an operator that writes to ``kept``, an input of the graph. The operator
    compares two addresses, and writes only if the weight changed. Some backends give it a copy of ``kept``, and copy
    that back.

    Args:
        weight: the raw weight.

    Example:
        >>> weight = torch.tensor([[1., 2., 3.]])
        >>> CompiledWeight(weight).refresh(weight, 1e-5).round(decimals=3)
        tensor([[-1.,  0.,  1.]])
    """

    def __init__(self, weight: Tensor) -> None:
        self.kept, self.cache, number = _reserve(weight), WeightCache(), next(_numbers)
        _caches[number] = self.cache
        with torch.inference_mode(False):  # a tensor: torch.compile makes a graph for each value of an int
            self.number = torch.tensor(number, device='cpu')

    def fits(self, weight: Tensor) -> bool:
        """Return False if the weight has another shape, memory format, dtype or device by now."""
        kept = self.kept
        return (weight.shape, weight.stride(), weight.dtype, weight.device) == (
            kept.shape, kept.stride(), kept.dtype, kept.device)

    def refresh(self, weight: Tensor, eps: float) -> Tensor:
        """Return the standardized weight: ``kept`` itself, which nothing may write to."""
        torch.ops.mmws.refresh_(weight, self.kept, self.number, eps)
        return self.kept


@torch.inference_mode(False)  # a graph may use it outside of inference mode
def _reserve(weight: Tensor) -> Tensor:
    """Return a tensor like ``weight`` that takes no memory before the first write: most networks are not compiled."""
    like = torch.empty_like(weight, device='meta', requires_grad=False)
    private = {'flags': mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, 'MAP_PRIVATE') else {}  # not on Windows
    memory = mmap.mmap(-1, max(like.numel() * like.element_size(), 1), **private)
    return torch.frombuffer(memory, dtype=like.dtype, count=like.numel()).as_strided(like.shape, like.stride())


def _refresh_(weight: Tensor, kept: Tensor, number: Tensor, eps: float) -> None:
    _caches[int(number)].write(weight, eps, kept)


_library: Any = torch.library.Library('mmws', 'DEF')  # type: ignore[no-untyped-call]
_library.define('refresh_(Tensor weight, Tensor(a!) kept, Tensor number, float eps) -> ()')
_library.impl('refresh_', _refresh_, 'CPU')
_library.impl('refresh_', lambda weight, kept, number, eps: None, 'Meta')

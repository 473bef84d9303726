"""What is kept of a standardized weight, and for how long. Imports torch alone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmws.ops.kernels import standardize_filters, standardize_together
from mmws.ops.standardize import HALF, attach, runs_eagerly, standardize_weight

__all__ = ['WeightCache']


class _Kept(NamedTuple):
    standardized: Tensor
    factors: Tensor
    watch: Tensor | None
    eps: float
    parameter: int
    version: int
    holders: int
    stream: int

    def holds(self, weight: Tensor, eps: float) -> bool:
        """Whether ``standardized`` is what ``weight`` gives: neither was written to."""
        return (self.watch is not None and _address(weight) == _address(self.watch)
                and weight.stride() == self.watch.stride() and weight.shape == self.watch.shape
                and eps == self.eps and self.standardized._version == self.version
                and _stream(weight) == self.stream)


class WeightCache:
    """Keeps the standardized form of one weight until that weight is written to.

    A version counter does not see writes through ``.data``, so the weight's memory is watched: torch makes a
    copy-on-write twin of it, which costs nothing until somebody asks for the memory to write to it. Then the weight
    moves to a copy and the twin keeps the address. As long as both are at one address, nothing was written. Before an
    optimizer of torch steps, the twins of what it is about to change are dropped, so that nothing is copied there.

    Where launching a kernel costs more than its arithmetic, as on a GPU, all the weights that an optimizer has changed
    are standardized together when the first of them is asked for.

    A weight is standardized at each call if its memory cannot be watched: if others hold it too (numpy arrays, flat
    parameters), if it lies in shared memory or in a file, or inside of a CUDA graph.

    Args:
        as_filters: makes rows of filters of the weight, if it is not such rows itself.

    Example:
        >>> cache, weight = WeightCache(), torch.nn.Parameter(torch.randn(2, 3))
        >>> first = cache.standardize(weight, 1e-5)
        >>> first.data_ptr() == cache.standardize(weight, 1e-5).data_ptr()
        True
        >>> _ = weight.data.neg_()
        >>> torch.equal(cache.standardize(weight, 1e-5), -first)
        True
    """

    def __init__(self, as_filters: Callable[[Tensor], Tensor] | None = None) -> None:
        self._as_filters = as_filters
        self._changed: Tensor | None = None
        self._kept: _Kept | None = None

    def standardize(self, weight: Tensor, eps: float) -> Tensor:
        """Return ``standardize_weight(as_filters(weight), eps)``, computed once while ``weight`` stays as it is.

        Args:
            weight: for which :func:`mmws.ops.standardize.runs_eagerly` holds.
            eps: added to the standard deviation.
        """
        with_gradient = weight.requires_grad and torch.is_grad_enabled()
        kept = self._kept if self._kept is not None and self._kept.holds(weight, eps) else None
        if kept is None and not (with_gradient and weight.dtype in HALF):  # whose gradient wants it in float32
            kept = self._keep(weight, eps)
        filters = weight if self._as_filters is None or (kept and not with_gradient) else self._as_filters(weight)
        if kept is None or (with_gradient and weight.dtype in HALF):
            return standardize_weight(filters, eps)
        return attach(filters, kept.standardized, kept.factors, eps) if with_gradient else kept.standardized.detach()

    # What is made in inference mode could not be saved for a backward pass later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _keep(self, weight: Tensor, eps: float) -> _Kept | None:
        with _lock:
            if self._kept is not None and self._kept.holds(weight, eps):
                return self._kept  # another thread was here
            beside = _stale(self, weight, eps) if weight.device.type in TOGETHER and self._batches(weight) else {}
            watched = {cache: (one, watch) for cache, one in ({self: weight} | beside).items()
                       if (watch := _watch(one)) is not None}
            if self not in watched:
                self._kept = None
            elif len(watched) == 1:
                self._set(weight, watched[self][1], eps, self._standardize(weight, eps))
            else:
                results = standardize_together([one for one, _ in watched.values()], eps)
                for (cache, (one, watch)), result in zip(watched.items(), results, strict=True):
                    cache._set(one, watch, eps, result)
            return self._kept

    def _batches(self, weight: Tensor) -> bool:
        return self._as_filters is None and weight.dtype not in HALF

    def _standardize(self, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        filters = weight if self._as_filters is None else self._as_filters(weight)
        out, self._kept = self._free_memory(filters), None
        standardized, factors = standardize_filters(filters.float() if weight.dtype in HALF else filters, eps, out=out)
        return standardized.to(weight.dtype), factors

    def _set(self, weight: Tensor, watch: Tensor, eps: float, result: tuple[Tensor, Tensor]) -> None:
        standardized, factors = result
        self._kept = _Kept(standardized, factors, watch, eps, id(weight), standardized._version,
                           _holders(standardized), _stream(weight))
        self._changed = None
        _caches.add(self)

    def _free_memory(self, filters: Tensor) -> Tensor | None:
        """What was kept, if it fits and nobody else holds it: fresh pages cost more than the arithmetic."""
        if self._kept is None or filters.dtype in HALF:
            return None
        old = self._kept.standardized
        fits = (old.shape, old.stride(), old.dtype, old.device) == (
            filters.shape, filters.stride(), filters.dtype, filters.device)
        alone = _holders(old) == self._kept.holders
        return old if fits and alone and self._kept.stream == _stream(filters) else None

    def stop_watching(self, weights: Mapping[int, Tensor]) -> None:
        """Let go of the weight if it is one of those that are about to change, given by their ids."""
        if self._kept is not None and self._kept.parameter in weights:
            self._changed = weights[self._kept.parameter]
            self._kept = self._kept._replace(watch=None)


def _address(tensor: Tensor) -> int:
    """``data_ptr()`` counts as a request to write."""
    return torch._C._data_address(tensor)  # type: ignore[attr-defined, no-any-return]


def _stream(weight: Tensor) -> int:
    """What another stream computes may not be there yet."""
    return torch.cuda.current_stream(weight.device).cuda_stream if weight.is_cuda else 0


def _holders(tensor: Tensor) -> int:
    """How many hold its memory, an object made to count among them."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def _watch(weight: Tensor) -> Tensor | None:
    if _holders(weight) > 2 or (weight.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None  # more than the weight and the object made to count
    try:
        return weight.detach()._lazy_clone()
    except RuntimeError:  # memory that is not torch's own: shared, pinned, in a file
        return None


TOGETHER = {'cuda'}  # where a kernel's launch costs more than its arithmetic
_caches: weakref.WeakSet[WeightCache] = weakref.WeakSet()
_lock = threading.Lock()


def _stale(cache: WeightCache, weight: Tensor, eps: float) -> dict[WeightCache, Tensor]:
    """The other weights that an optimizer has changed since, and that can be standardized in one go with ``weight``."""
    kind = weight.device, weight.dtype, eps, _stream(weight)
    found = {}
    for other in list(_caches):
        changed, kept = other._changed, other._kept
        if (other is not cache and changed is not None and kept is not None and other._batches(changed)
                and kind == (changed.device, changed.dtype, kept.eps, kept.stream) and runs_eagerly(changed)):
            found[other] = changed
    return found


def _before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return
    stepped = {id(parameter): parameter for group in optimizer.param_groups for parameter in group['params']
               if parameter.grad is not None}
    for cache in list(_caches):
        cache.stop_watching(stepped)


register_optimizer_step_pre_hook(_before_step)

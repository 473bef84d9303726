"""Cache of a layer's standardized weight."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmws.ops.kernels import standardize_filters, standardize_together
from mmws.ops.standardize import HALF, attach_gradient, standardize_weight
from mmws.ops.torch_compat import (
    DETECTS_WRITES,
    address,
    is_compiling,
    lazy_clone,
    runs_eagerly,
    storage_users,
    version,
)

__all__ = ['WeightCache']

BATCHED_DEVICES = {'cuda'}  # launching a kernel costs more than its arithmetic
_caches: weakref.WeakSet[WeightCache] = weakref.WeakSet()
_in_graphs: set[int] = set()  # addresses of weights that a CUDA graph reads or writes at each replay
_lock = threading.Lock()


class _Entry(NamedTuple):
    """A standardized weight and the state that it was computed from."""

    standardized: Tensor
    factors: Tensor  # two numbers per filter, for the gradient
    clone: Tensor | None  # copy-on-write clone of the raw weight
    eps: float  # added to the standard deviation
    parameter: int  # id of the raw weight
    version: int  # version counter of ``standardized``
    users: int  # references to the storage of ``standardized``; 0 if several results share the storage
    changed: Tensor | None = None  # the raw weight, after an optimizer step
    step: object = None  # one object per optimizer step

    def is_valid(self, weight: Tensor, eps: float) -> bool:
        """Return False if the entry is stale: the weight, ``eps`` or the cached tensor changed."""
        return self.is_of(weight, eps) and version(self.standardized) == self.version

    def is_of(self, weight: Tensor, eps: float) -> bool:
        """Return False if the weight or ``eps`` changed."""
        return self.clone is not None and _view(weight) == _view(self.clone) and eps == self.eps

    def can_be_overwritten(self, filters: Tensor) -> bool:
        """Return True if the next result can overwrite this one: new memory pages cost more than the arithmetic."""
        old = self.standardized
        return ((old.shape, old.stride(), old.dtype, old.device) == (
                    filters.shape, filters.stride(), filters.dtype, filters.device)
                and self.users == storage_users(old))


class WeightCache:
    """Cache the standardized form of one weight until the weight changes.

    A version counter misses writes through ``.data``, but copy-on-write detects them: the cache holds a lazy clone of
    the weight. A write moves the weight to new memory, and the clone keeps the address. The entry is valid while both
    have the same address. Before a torch optimizer steps, a hook releases the clones of the parameters that the step
    changes, so the step copies nothing. On a GPU all weights that one step changed are standardized together, in the
    first forward pass that needs one of them.

    A weight is not cached if writes cannot be detected: torch has no copy-on-write (before 2.4), other objects use the
    memory (numpy arrays, flat parameters), torch does not own it (shared memory, files), a CUDA graph has the weight,
    or the current CUDA stream is not the default one.

    Args:
        as_filters: returns the weight with one filter per row, if its layout differs.

    Example:
        >>> cache, weight = WeightCache(), torch.nn.Parameter(torch.randn(2, 3))
        >>> first = cache.standardize(weight, 1e-5)
        >>> torch.equal(cache.standardize(weight, 1e-5), first)  # from the cache
        True
        >>> _ = weight.data.neg_()
        >>> torch.equal(cache.standardize(weight, 1e-5), -first)
        True
    """

    def __init__(self, as_filters: Callable[[Tensor], Tensor] | None = None) -> None:
        self._as_filters, self._can_batch = as_filters or (lambda weight: weight), as_filters is None
        self._entry: _Entry | None = None

    def standardize(self, weight: Tensor, eps: float) -> Tensor:
        """Return ``standardize_weight(as_filters(weight), eps)``, from the cache if ``weight`` is unchanged.

        Args:
            weight: a tensor for which :func:`mmws.ops.torch_compat.runs_eagerly` is true.
            eps: added to the standard deviation.
        """
        with_gradient = weight.requires_grad and torch.is_grad_enabled()
        if DETECTS_WRITES and not _is_safe(weight):
            self._entry = None  # its clone would move the weight at the next write
            return standardize_weight(self._as_filters(weight), eps)
        if not DETECTS_WRITES or (with_gradient and weight.dtype in HALF):  # the gradient needs the float32 result
            return standardize_weight(self._as_filters(weight), eps)
        entry = self._entry
        if entry is None or not entry.is_valid(weight, eps):
            entry = self._update(weight, eps)
        if entry is None:
            return standardize_weight(self._as_filters(weight), eps)
        if not with_gradient:
            return entry.standardized.detach()
        return attach_gradient(self._as_filters(weight), entry.standardized, entry.factors, eps)

    @torch.no_grad()
    def write(self, filters: Tensor, eps: float, out: Tensor) -> None:
        """Write the standardized ``filters`` to ``out``, unless it contains them since the last call."""
        if self._entry is not None and self._entry.is_of(filters, eps):
            return
        with _lock, torch.inference_mode(False):
            clone = _copy_on_write_clone(filters) if DETECTS_WRITES else None
            wide = filters.detach().float() if filters.dtype in HALF else filters.detach()
            direct = wide.dtype == out.dtype and not out.is_inference()  # a backend's copy of `out` may be one
            standardized, factors = standardize_filters(wide, eps, out=out if direct else None)
            if not direct:
                with torch.inference_mode(out.is_inference()):
                    out.copy_(standardized)
            self._entry = _Entry(factors, factors, clone, eps, id(filters), 0, 0)  # `out` may be a copy
            _caches.add(self)

    def release(self, weights: Mapping[int, Tensor], step: object) -> None:
        """Invalidate the entry if its weight is in ``weights`` (by id), which an optimizer step will change."""
        if self._entry is not None and self._entry.parameter in weights:
            self._entry = self._entry._replace(clone=None, changed=weights[self._entry.parameter], step=step)

    @torch.inference_mode(False)  # a backward pass cannot use tensors made in inference mode
    @torch.no_grad()
    def _update(self, weight: Tensor, eps: float) -> _Entry | None:
        with _lock:
            if self._entry is not None and self._entry.is_valid(weight, eps):
                return self._entry  # another thread computed it
            weights = {self: weight, **self._stale_together(weight, eps)}
            clones = {cache: clone for cache, other in weights.items()
                      if (clone := _copy_on_write_clone(other)) is not None}
            if self not in clones:
                self._entry = None
                return None
            results = [self._compute(weight, eps)] if len(clones) == 1 else standardize_together(
                [weights[cache] for cache in clones], eps)
            for (cache, clone), result in zip(clones.items(), results):
                users = storage_users(result[0]) if len(clones) == 1 else 0
                cache._entry = _Entry(*result, clone, eps, id(weights[cache]), version(result[0]), users)
                _caches.add(cache)
            return self._entry

    def _stale_together(self, weight: Tensor, eps: float) -> dict[WeightCache, Tensor]:
        """Return the other stale weights of the same optimizer step that can be standardized together with ``weight``.

        Weights of other optimizers belong to other models, whose next forward pass may never come.
        """
        step = self._entry.step if self._entry is not None else None
        if step is None or not self._can_batch or weight.dtype in HALF or weight.device.type not in BATCHED_DEVICES:
            return {}
        kind = weight.device, weight.dtype, eps
        return {cache: changed for cache in list(_caches)
                if cache is not self and (entry := cache._entry) is not None and entry.step is step
                and (changed := entry.changed) is not None and cache._can_batch and runs_eagerly(changed)
                and kind == (changed.device, changed.dtype, entry.eps) and _is_safe(changed)}

    def _compute(self, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        filters = self._as_filters(weight)
        filters = filters.float() if filters.dtype in HALF else filters
        old, self._entry = self._entry, None
        out = old.standardized if old is not None and old.can_be_overwritten(filters) else None
        standardized, factors = standardize_filters(filters, eps, out=out)
        return standardized.to(weight.dtype), factors


def _view(tensor: Tensor) -> tuple[Any, ...]:
    """Return all that the values of ``tensor`` depend on, apart from the memory at its address."""
    return (address(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg())


def _is_safe(weight: Tensor) -> bool:
    """Return False if copy-on-write must not be used for ``weight``, because of CUDA streams or graphs.

    torch (2.4 to 2.13) copies a weight on the default stream, when it is written to while a clone exists; kernels on
    another stream do not wait for that copy. A CUDA graph reads and writes a weight at the address of the capture. So
    the weight must not move, and a replay changes it without a trace.
    """
    if _is_captured(weight):
        _in_graphs.add(address(weight))
    return _is_on_default_stream(weight) and not (_in_graphs and address(weight) in _in_graphs)


def _is_captured(weight: Tensor) -> bool:
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


def _is_on_default_stream(weight: Tensor) -> bool:
    return not weight.is_cuda or torch.cuda.current_stream(weight.device).cuda_stream == 0


def _copy_on_write_clone(weight: Tensor) -> Tensor | None:
    """Return a lazy clone of ``weight``, or None if writes to the weight cannot be detected."""
    if storage_users(weight) > 1:
        return None
    try:
        return lazy_clone(weight.detach())
    except RuntimeError:  # torch does not own the memory: shared, pinned, memory-mapped
        return None


def _before_optimizer_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if is_compiling():
        return
    changing = {id(parameter): parameter for group in optimizer.param_groups for parameter in group['params']
                if parameter.grad is not None}
    if DETECTS_WRITES:
        _in_graphs.update(address(parameter) for parameter in changing.values() if _is_captured(parameter))
    step = object()
    for cache in list(_caches):
        cache.release(changing, step)


register_optimizer_step_pre_hook(_before_optimizer_step)

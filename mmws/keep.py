"""What is kept of a standardized weight, and for how long. Imports torch alone."""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmws.functional import HALF, attach, standardize_filters, standardize_weight

__all__ = ['Keeper']


class _Kept(NamedTuple):
    standardized: Tensor
    std: Tensor
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


class Keeper:
    """Keeps the standardized form of one weight until that weight is written to.

    A version counter does not see writes through ``.data``, so the weight's memory is watched: torch makes a
    copy-on-write twin of it, which costs nothing until somebody asks for the memory to write to it. Then the weight
    moves to a copy and the twin keeps the address. As long as both are at one address, nothing was written. Before an
    optimizer of torch steps, the twins of what it is about to change are dropped, so that nothing is copied there.

    A weight is standardized at each call if its memory cannot be watched: if others hold it too (numpy arrays, flat
    parameters), if it lies in shared memory or in a file, or inside of a CUDA graph.

    Example:
        >>> keeper, weight = Keeper(), torch.nn.Parameter(torch.randn(2, 3))
        >>> first = keeper.standardize(weight, 1e-5)
        >>> first.data_ptr() == keeper.standardize(weight, 1e-5).data_ptr()
        True
        >>> _ = weight.data.neg_()
        >>> torch.equal(keeper.standardize(weight, 1e-5), -first)
        True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: _Kept | None = None

    def standardize(self, weight: Tensor, eps: float) -> Tensor:
        """Return ``standardize_weight(weight, eps)``, computed once while ``weight`` stays as it is.

        Args:
            weight: for which :func:`mmws.functional.runs_eagerly` holds.
            eps: added to the standard deviation.
        """
        with_gradient = weight.requires_grad and torch.is_grad_enabled()
        if with_gradient and weight.dtype in HALF:
            return standardize_weight(weight, eps)  # the gradient wants it in float32
        kept = self._kept
        if kept is None or not kept.holds(weight, eps):
            kept = None
            kept = self._keep(weight, eps)
        if kept is None:
            return standardize_weight(weight, eps)
        return attach(weight, kept.standardized, kept.std, eps) if with_gradient else kept.standardized.detach()

    # What is made in inference mode could not be saved for a backward pass later.
    @torch.inference_mode(False)
    def _keep(self, weight: Tensor, eps: float) -> _Kept | None:
        with self._lock:
            if self._kept is not None and self._kept.holds(weight, eps):
                return self._kept  # another thread was here
            out, self._kept = self._free_memory(weight), None
            watch = _watch(weight)
            if watch is not None:
                wide = weight.float() if weight.dtype in HALF else weight
                standardized, std = standardize_filters(wide, eps, out=out)
                standardized = standardized.to(weight.dtype)
                self._kept = _Kept(standardized, std, watch, eps, id(weight), standardized._version,
                                   _holders(standardized), _stream(weight))
                _keepers.add(self)
            return self._kept

    def _free_memory(self, weight: Tensor) -> Tensor | None:
        """What was kept, if it fits and nobody else holds it: fresh pages cost more than the arithmetic."""
        if self._kept is None or weight.dtype in HALF:
            return None
        old = self._kept.standardized
        fits = (old.shape, old.stride(), old.dtype, old.device) == (weight.shape, weight.stride(), weight.dtype,
                                                                     weight.device)
        alone = _holders(old) == self._kept.holders
        return old if fits and alone and self._kept.stream == _stream(weight) else None

    def stop_watching(self, parameters: set[int]) -> None:
        """Let go of the weight if it is one of ``parameters``, given by their ids."""
        if self._kept is not None and self._kept.parameter in parameters:
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


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group['params']
               if parameter.grad is not None}
    for keeper in list(_keepers):
        keeper.stop_watching(stepped)


register_optimizer_step_pre_hook(_before_step)

"""Private and recent names of torch: what each is for. No other module may use them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import get_total_norm, parametrizations
from torch.utils._pytree import tree_leaves

__all__ = ['BatchNorm', 'ConvNd', 'ConvTransposeNd', 'InstanceNorm', 'NormBase', 'SpectralParametrization',
           'WeightNormParametrization', 'address', 'get_total_norm', 'lazy_clone', 'runs_eagerly', 'storage_users',
           'tree_leaves', 'version']

# Base classes without a public name.
ConvNd = nn.modules.conv._ConvNd
ConvTransposeNd = nn.modules.conv._ConvTransposeNd
NormBase = nn.modules.batchnorm._NormBase
BatchNorm = nn.modules.batchnorm._BatchNorm
InstanceNorm = nn.modules.instancenorm._InstanceNorm
WeightNormParametrization = parametrizations._WeightNorm
SpectralParametrization = parametrizations._SpectralNorm


def runs_eagerly(tensor: Tensor) -> bool:
    """Return whether ``tensor`` is a plain tensor outside of compilers, tracers, transforms and fake modes."""
    return (not torch.compiler.is_compiling() and type(tensor) in (Tensor, nn.Parameter)
            and (tensor.is_cpu or tensor.is_cuda) and not torch._C._is_tracing()
            and torch._C._len_torch_dispatch_stack() == 0 and torch._C._functorch.peek_interpreter_stack() is None
            and forward_ad._current_level < 0)


def version(tensor: Tensor) -> int:
    """Return how often ``tensor`` was written to in place; inference tensors do not count, and give 0."""
    return 0 if tensor.is_inference() else tensor._version


def address(tensor: Tensor) -> int:
    """Return the address of the storage. ``data_ptr()`` would end copy-on-write: it counts as a request to write."""
    return torch._C._data_address(tensor)  # type: ignore[attr-defined, no-any-return]


def storage_users(tensor: Tensor) -> int:
    """Return how many objects hold the storage, one object that is made to count among them."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def lazy_clone(tensor: Tensor) -> Tensor:
    """Return a copy-on-write clone: it moves no byte until one of the two is written to.

    Raises:
        RuntimeError: if the memory is not torch's own (shared, pinned, in a file).
    """
    clone: Tensor = tensor._lazy_clone()
    return clone

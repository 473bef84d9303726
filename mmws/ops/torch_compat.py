"""Private and recent names of torch. No other module may use them.

pyproject.toml requires torch >= 2.6; torch 2.13 is tested. No name has a fallback. If torch lacks a name that is bound
at import, ``import mmws`` fails. If it lacks a name that a function uses, calling the function raises AttributeError.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import get_total_norm, parametrizations  # the guard's gradient norm; torch < 2.6 lacks it
from torch.utils._pytree import tree_leaves  # the tensors in nested inputs and outputs of a module

__all__ = ['BatchNorm', 'ConvNd', 'ConvTransposeNd', 'InstanceNorm', 'NormBase', 'SpectralParametrization',
           'WeightNormParametrization', 'address', 'get_total_norm', 'lazy_clone', 'runs_eagerly', 'storage_users',
           'tree_leaves', 'version']

ConvNd = nn.modules.conv._ConvNd  # to recognize a convolution of any dimension
ConvTransposeNd = nn.modules.conv._ConvTransposeNd  # to recognize a transposed one: its outputs are on axis 1
NormBase = nn.modules.batchnorm._NormBase  # parameters, running statistics and state dict of EstimatedBatchNorm
BatchNorm = nn.modules.batchnorm._BatchNorm  # to recognize a batch norm of any dimension, and to subclass it
InstanceNorm = nn.modules.instancenorm._InstanceNorm  # to recognize an instance norm of any dimension
WeightNormParametrization = parametrizations._WeightNorm  # to recognize a weight-normalized convolution
SpectralParametrization = parametrizations._SpectralNorm  # to recognize a spectrally normalized convolution


def runs_eagerly(tensor: Tensor) -> bool:
    """Return True for a plain tensor outside of compilers, tracers, functorch transforms, dispatch and dual modes.

    Only such a weight is cached. If torch lacks one of the names, the first forward pass fails.
    """
    return (not torch.compiler.is_compiling() and type(tensor) in (Tensor, nn.Parameter)
            and (tensor.is_cpu or tensor.is_cuda) and not torch._C._is_tracing()
            and torch._C._len_torch_dispatch_stack() == 0 and torch._C._functorch.peek_interpreter_stack() is None
            and forward_ad._current_level < 0)


def version(tensor: Tensor) -> int:
    """Return the number of in-place writes to ``tensor``; 0 for an inference tensor, which does not count them.

    It detects a stale weight or result. Without ``_version`` the first forward pass fails.
    """
    return 0 if tensor.is_inference() else tensor._version


def address(tensor: Tensor) -> int:
    """Return the address of the data. ``data_ptr()`` would count as a write and end copy-on-write.

    The weight cache compares addresses. Without ``_data_address`` (pytorch/pull/113396) the second forward pass fails.
    """
    return torch._C._data_address(tensor)  # type: ignore[attr-defined, no-any-return]


def storage_users(tensor: Tensor) -> int:
    """Return the number of references to the storage, including one that this call creates.

    The weight cache detects other users of the memory. Without ``_storage_Use_Count`` the first forward pass fails.
    """
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def lazy_clone(tensor: Tensor) -> Tensor:
    """Return a copy-on-write clone, which shares the memory until one of the two tensors is written to.

    The weight cache detects writes with it. Without ``_lazy_clone`` (pytorch/pull/113397, January 2024) the first
    forward pass fails. If a torch version copied at once, each forward pass would standardize again.

    Raises:
        RuntimeError: if torch's allocators do not own the memory (shared, pinned, memory-mapped).
    """
    return tensor._lazy_clone()

"""Private and recent names of torch. No other module may use them.

torch 2.0.1 and 2.13 are tested. The comment or docstring of a name says what it is for, and what happens in a torch
without it. If it says nothing of that, both versions have the name; without it, ``import mmws`` or the call fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

__all__ = ['ALLOWS_NAMED_GLOBALS', 'DETECTS_WRITES', 'DYNAMIC', 'NORMALIZE', 'TELLS_EXPORTS', 'BatchNorm', 'ConvNd',
           'ConvTransposeNd', 'InstanceNorm', 'NormBase', 'SpectralParametrization', 'WeightNormParametrization',
           'add_load_state_dict_pre_hook', 'add_safe_globals', 'add_step_pre_hook', 'address', 'autocast_dtype',
           'clear_backward_hooks', 'get_total_norm', 'has_saved_tensor_hooks', 'indexing_shown_to',
           'is_compiled_inference', 'is_compiling', 'lazy_clone', 'recomputes', 'runs_eagerly', 'saved_value',
           'storage_users', 'tree_leaves', 'version', 'without_compiler']

ConvNd = nn.modules.conv._ConvNd  # to recognize a convolution of any dimension
ConvTransposeNd = nn.modules.conv._ConvTransposeNd  # to recognize a transposed one: its outputs are on axis 1
NormBase = nn.modules.batchnorm._NormBase  # parameters, running statistics and state dict of EstimatedBatchNorm
BatchNorm = nn.modules.batchnorm._BatchNorm  # to recognize a batch norm of any dimension, and to subclass it
InstanceNorm = nn.modules.instancenorm._InstanceNorm  # to recognize an instance norm of any dimension
SpectralParametrization = parametrizations._SpectralNorm  # to recognize a spectrally normalized convolution
# To recognize a weight-normalized convolution. torch < 2.1 has none of them.
WeightNormParametrization = getattr(parametrizations, '_WeightNorm', None)
# By the option `weight`. Without weight_norm (torch < 2.1), the option 'wn' is refused.
NORMALIZE: dict[str, Callable[..., nn.Module]] = {
    option: getattr(parametrizations, name) for option, name in (('wn', 'weight_norm'), ('spectral', 'spectral_norm'))
    if hasattr(parametrizations, name)}
# To detect writes to a weight by copy-on-write. Without it, each call standardizes its weight again. torch 2.3 has the
# names, but a read ends copy-on-write there.
DETECTS_WRITES = (hasattr(Tensor, '_lazy_clone') and hasattr(torch._C, '_data_address')
                  and hasattr(torch._C, '_storage_Use_Count')
                  and [int(part) for part in torch.__version__.split('.')[:2]] >= [2, 4])
# A dynamic size in an exported graph. Without it (torch < 2.6), the export to ONNX is refused.
DYNAMIC = getattr(getattr(getattr(torch, 'export', None), 'Dim', None), 'DYNAMIC', None)
# Is torch.compile tracing the code? It must not trace the cache. Without torch.compiler.is_compiling (torch < 2.3), an
# older function is used, which torch.compile knows too. Without both, torch.compile traces the layers as eager code.
is_compiling: Callable[[], bool] = getattr(
    getattr(torch, 'compiler', None), 'is_compiling', getattr(torch._utils, 'is_compiling', lambda: False))


# torch.compiler tells an export from a compilation. Without it (torch < 2.7), a compiled network has the formula.
TELLS_EXPORTS = DETECTS_WRITES and hasattr(getattr(torch, 'compiler', None), 'is_exporting')


def saved_value(node: Any, name: str, default: Any) -> Any:
    """Return a value that a node of the autograd graph saved; the default if its kind of node has no such value."""
    return getattr(node, f'_saved_{name}', default)


def clear_backward_hooks(module: nn.Module) -> None:
    """Remove the backward hooks: they copy the output of a convolution, which hides what consumes it."""
    module._backward_hooks.clear()
    module._backward_pre_hooks.clear()


def without_compiler() -> Any:
    """Return a context in which modules that are compiled already run without their compiled code.

    torch < 2.6 has none: a compiled network cannot be recorded there.
    """
    stance = getattr(getattr(torch, 'compiler', None), 'set_stance', None)
    return stance('force_eager') if stance and 'torch._dynamo' in sys.modules else nullcontext()


def runs_eagerly(tensor: Tensor) -> bool:
    """Return True for a plain tensor outside of compilers, tracers, functorch transforms, dispatch and dual modes.

    Only such a weight is cached.
    """
    return (not is_compiling() and type(tensor) in (Tensor, nn.Parameter)
            and (tensor.is_cpu or tensor.is_cuda) and not torch._C._is_tracing()
            and torch._C._len_torch_dispatch_stack() == 0 and torch._C._functorch.peek_interpreter_stack() is None
            and forward_ad._current_level < 0)


def recomputes() -> bool:
    """Return True inside a backward pass: activation checkpointing runs the forward pass of its layers there again.

    The norms then keep their running statistics. Without ``_current_graph_task_id`` they update them twice.
    """
    return getattr(torch._C, '_current_graph_task_id', lambda: -1)() != -1


def is_compiled_inference() -> bool:
    """Return True where torch.compile traces inference; not in an export, whose result must not need mmws.

    The graph then refreshes a kept weight.
    """
    return (TELLS_EXPORTS and is_compiling() and not torch.is_grad_enabled()
            and not torch.compiler.is_exporting())


def version(tensor: Tensor) -> int:
    """Return the number of in-place writes to ``tensor``; 0 for an inference tensor, which does not count them.

    It detects a stale weight or result. Without ``_version`` the first forward pass fails.
    """
    return 0 if tensor.is_inference() else tensor._version


def address(tensor: Tensor) -> int:
    """Return the address of the data. ``data_ptr()`` would count as a write and end copy-on-write.

    The weight cache compares addresses. ``_data_address`` is of pytorch/pull/113396, see :data:`DETECTS_WRITES`.
    """
    return torch._C._data_address(tensor) if DETECTS_WRITES else tensor.data_ptr()  # type: ignore[attr-defined]


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that a convolution gives ``tensor``: that of autocast where it is enabled.

    torch < 2.4 has functions without an argument for it.
    """
    kind = tensor.device.type
    if tensor.dtype == torch.float64:  # autocast leaves it as it is
        return tensor.dtype
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
    if torch.is_autocast_enabled() if kind == 'cuda' else torch.is_autocast_cpu_enabled():
        return torch.get_autocast_gpu_dtype() if kind == 'cuda' else torch.get_autocast_cpu_dtype()
    return tensor.dtype


def has_saved_tensor_hooks() -> bool:
    """Return True inside ``torch.autograd.graph.saved_tensors_hooks``, such as activation checkpointing.

    Hooks of a layer would replace these. torch < 2.5 does not tell: there the layer's hooks are used.
    """
    top = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', lambda ignore_is_tracing: None)
    return top(True) is not None


def storage_users(tensor: Tensor) -> int:
    """Return the number of users of the memory: 1 if no other tensor, numpy array or view uses it.

    The weight cache detects other users of the memory. Without ``_storage_Use_Count``, see :data:`DETECTS_WRITES`.
    """
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) - _COUNTED_TOO


_COUNTED_TOO = 0  # a newer torch also counts the object that `untyped_storage()` returns; 2.6 does not
_COUNTED_TOO = storage_users(torch.empty(1)) - 1 if DETECTS_WRITES else 0


def lazy_clone(tensor: Tensor) -> Tensor:
    """Return a copy-on-write clone, which shares the memory until one of the two tensors is written to.

    The weight cache detects writes with it. Without ``_lazy_clone`` (pytorch/pull/113397, January 2024), see
    :data:`DETECTS_WRITES`. If a torch version copied at once, each forward pass would standardize again.

    Raises:
        RuntimeError: if torch's allocators do not own the memory (shared, pinned, memory-mapped).
    """
    return tensor._lazy_clone()


def tree_leaves(value: Any) -> list[Any]:
    """Return the leaves of nested containers, for example the tensors in the inputs of a module.

    torch's own function is slower for the usual containers, as it also describes their structure; it knows the others.
    """
    if type(value) not in (tuple, list, dict):
        return [value] if value is None or isinstance(value, _LEAVES) else _pytree.tree_flatten(value)[0]
    leaves = []
    for part in value.values() if isinstance(value, dict) else value:
        if part is None or isinstance(part, _LEAVES):
            leaves.append(part)
        else:
            leaves += tree_leaves(part)
    return leaves


_LEAVES = torch.Tensor, nn.Module, int, float, str


def _sees_indexing() -> bool:
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function)
            return function(*args, **kwargs or {})

    tensor = torch.zeros(1, device='cpu')
    with Mode():
        tensor[0]
    return bool(seen)


_SEES_INDEXING = _sees_indexing()


@contextmanager
def indexing_shown_to(handle: Callable[[Any, tuple[Any, ...]], Any]) -> Iterator[None]:
    """Context in which ``handle(function, args)`` runs ``x[0]`` and ``x[0] = y``, if torch hides them from modes.

    The recorder of consumers needs it. torch < 2.1 hides them from a ``TorchFunctionMode``; a newer one shows them.
    """
    names = () if _SEES_INDEXING else ('__getitem__', '__setitem__')
    for name in names:
        function = getattr(Tensor, name)
        setattr(Tensor, name, wraps(function)(lambda *args, function=function: handle(function, args)))
    try:
        yield
    finally:
        for name in names:
            delattr(Tensor, name)  # the base class has the original


def add_step_pre_hook(optimizer: Any, hook: Callable[..., None]) -> None:
    """Register ``hook(optimizer, ...)`` to run before each step.

    In torch 2.0 and 2.1, ``torch.compile`` switches the hooks of each optimizer class off that was not used before it.
    They are switched on again.
    """
    step = type(optimizer).step
    if getattr(step, 'hooked', False) and step.__code__.co_name != 'wrapper':  # marked, but not wrapped
        type(optimizer).step = optimizer.profile_hook_step(step)
    optimizer.register_step_pre_hook(hook)


def _norm_of_norms(tensors: Sequence[Tensor], norm_type: float) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor, norm_type).to(tensors[0].device) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms), norm_type)  # type: ignore[no-any-return]


# The norm of all gradients, for the guard. Without it (torch < 2.6), it is computed from the norm of each one.
get_total_norm: Callable[..., Tensor] = getattr(nn.utils, 'get_total_norm', _norm_of_norms)


def add_load_state_dict_pre_hook(module: nn.Module, hook: Callable[..., None]) -> None:
    """Register ``hook(module, state_dict, prefix, ...)`` to run before ``module`` loads its state.

    Without the public method (torch < 2.5), the private one with the same effect registers it.
    """
    public = getattr(module, 'register_load_state_dict_pre_hook', None)
    (public or partial(module._register_load_state_dict_pre_hook, with_module=True))(hook)


# Can `torch.load(weights_only=True)` be told to accept objects under the name that they have in a file? Without it
# (torch < 2.6), checkpoints with a log history are read by a restricted unpickler.
ALLOWS_NAMED_GLOBALS = hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')  # a name added at the same time


def add_safe_globals(allowed: list[Any]) -> None:
    """Allow ``torch.load(weights_only=True)`` to use objects, some as ``(object, name in the file)``.

    No effect without :data:`ALLOWS_NAMED_GLOBALS`.
    """
    if ALLOWS_NAMED_GLOBALS:
        torch.serialization.add_safe_globals(allowed)

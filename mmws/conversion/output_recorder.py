"""What becomes of each convolution's output when a network runs. Imports torch alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mmws.conversion.module_tree import is_conv
from mmws.conversion.norm_types import is_layer_norm, is_norm

__all__ = ['NORM_FUNCTIONS', 'OutputRecorder']

NORM_FUNCTIONS = {'batch_norm', 'group_norm', 'instance_norm'}
_SAME_VALUES = {'contiguous', 'to', 'float', 'type', 'type_as', 'clone', 'detach'}
_ONLY_THE_SHAPE = {'new_zeros', 'new_ones', 'new_full', 'new_empty', 'new_tensor', 'zeros_like', 'ones_like',
                   'full_like', 'empty_like', 'rand_like', 'randn_like'}


class OutputRecorder(TorchFunctionMode):
    """A block under which the consumers of each convolution's output are written down.

    Attributes:
        consumers: for each convolution that ran, what took its output: norms as modules, functions by name. A function
            that looks at no value (a shape, ``zeros_like``) does not count, nor does a copy of the same values.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Sigmoid())
        >>> with OutputRecorder(net) as recorder:
        ...     _ = net(torch.zeros(1, 3, 4, 4))
        >>> recorder.consumers[net[0]] == [net[1]], recorder.consumers[net[3]]
        (True, ['sigmoid'])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.consumers: dict[nn.Module, list[nn.Module | str]] = {}
        self._model = model
        self._made: dict[int, tuple[weakref.ref[Tensor], list[nn.Module]]] = {}  # by id, as long as the tensor lives
        self._weights: dict[int, list[nn.Module]] = {}
        self._running = {'conv': 0, 'norm': 0}
        self._hooks: list[Any] = []

    def __enter__(self) -> OutputRecorder:
        for module in self._model.modules():
            if is_conv(module):
                if 'weight' in module._parameters:
                    self._weights.setdefault(id(module.weight), []).append(module)
                self._watch(module, 'conv')
            elif is_norm(module) or is_layer_norm(module):
                self._watch(module, 'norm')
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _watch(self, module: nn.Module, kind: str) -> None:
        self._hooks += [module.register_forward_pre_hook(partial(self._before, kind)),
                        module.register_forward_hook(partial(self._after, kind), always_call=True)]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, '__name__', str(function))
        looked_at_no_value = result is not None and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if self._running['norm'] or looked_at_no_value:
            return result
        for convs in self._makers((args, kwargs)):
            if name in _SAME_VALUES:
                self._note_made(result, convs)
            elif name not in _ONLY_THE_SHAPE:
                self._note_taken(convs, name)
        if name.startswith('conv') and not self._running['conv']:
            weight = kwargs['weight'] if 'weight' in kwargs else args[1]
            self._note_taken(self._weights.get(id(weight), []), f'its weight goes to {name} outside of it')
        return result

    def _makers(self, values: Any) -> Iterator[list[nn.Module]]:
        """The convolutions that made the tensors among ``values``."""
        for leaf in tree_leaves(values):
            if id(leaf) in self._made:
                yield self._made[id(leaf)][1]

    def _note_made(self, result: Any, convs: list[nn.Module]) -> None:
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._made[id(leaf)] = weakref.ref(leaf, partial(self._forget, id(leaf))), convs

    def _forget(self, key: int, _: Any) -> None:
        self._made.pop(key, None)

    def _note_taken(self, convs: list[nn.Module], consumer: nn.Module | str) -> None:
        for conv in convs:
            consumers = self.consumers.setdefault(conv, [])
            consumers += [consumer] if consumer not in consumers else []

    def _before(self, kind: str, module: nn.Module, args: Any) -> None:
        self._running[kind] += 1
        if kind == 'norm':
            for convs in self._makers(args):
                self._note_taken(convs, module)

    def _after(self, kind: str, module: nn.Module, args: Any, output: Any) -> None:
        self._running[kind] -= 1
        if kind == 'conv':
            self.consumers.setdefault(module, [])
            self._note_made(output, [module])

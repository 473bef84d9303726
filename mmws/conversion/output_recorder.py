"""Recorder of the consumers of each convolution's output during a forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Dict, List, Union

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmws.conversion.layer_types import is_conv, is_norm
from mmws.ops.torch_compat import indexing_shown_to, tree_leaves

__all__ = ['NORM_FUNCTIONS', 'Consumers', 'OutputRecorder']

Consumers = Dict[nn.Module, List[Union[nn.Module, str]]]
NORM_FUNCTIONS = {'batch_norm', 'group_norm', 'instance_norm'}
_COPIES = {'contiguous', 'to', 'float', 'type', 'type_as', 'clone', 'detach'}  # the consumers of the copy are recorded
_SHAPE_ONLY = {'new_zeros', 'new_ones', 'new_full', 'new_empty', 'new_tensor', 'zeros_like', 'ones_like', 'full_like',
               'empty_like', 'rand_like', 'randn_like'}


class OutputRecorder(TorchFunctionMode):
    """Context manager that records the consumers of each convolution's output.

    Attributes:
        consumers: for each convolution that ran, its consumers in order: norms as modules, functions by name. Functions
            that read only the shape (``zeros_like``) do not count. If a function only copies the output, the consumers
            of the copy are recorded.

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
        self.consumers: Consumers = {}
        self._model = model
        # By id of the tensor; the weak reference removes the entry with the tensor, as an id can be used again.
        self._producers: dict[int, tuple[weakref.ref[Tensor], list[nn.Module]]] = {}
        self._weights: dict[int, list[nn.Module]] = {}
        self._running = {'conv': 0, 'norm': 0}
        self._hooks: list[Any] = []
        self._indexing = indexing_shown_to(lambda function, args: self.__torch_function__(function, (), args))

    def __enter__(self) -> OutputRecorder:
        for module in self._model.modules():
            if is_conv(module) or is_norm(module) or isinstance(module, nn.LayerNorm):
                kind = 'conv' if is_conv(module) else 'norm'
                self._hooks += [module.register_forward_pre_hook(partial(self._before, kind)),
                                module.register_forward_hook(partial(self._after, kind))]
                if kind == 'conv' and 'weight' in module._parameters:
                    self._weights.setdefault(id(module.weight), []).append(module)
        self._indexing.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._indexing.__exit__(*exception)
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Context of a forward pass. If it fails, also inside the network, what it recorded is removed.

        Raises:
            RuntimeError: if a layer raised an exception that the network caught. The record is incomplete then.
        """
        before = {conv: list(consumers) for conv, consumers in self.consumers.items()}
        try:
            yield
            if any(self._running.values()):
                raise RuntimeError('the network caught the exception of a layer')
        except BaseException:
            self.consumers, self._running = before, {'conv': 0, 'norm': 0}
            raise

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, '__name__', str(function))
        returns_no_tensor = result is not None and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if self._running['norm'] or returns_no_tensor:
            return result
        for convs in self._producers_of((args, kwargs)):
            if name in _COPIES:
                self._add_producers(result, convs)
            elif name not in _SHAPE_ONLY:
                self._add_consumer(convs, name)
        if name.startswith('conv') and not self._running['conv']:
            weight = kwargs['weight'] if 'weight' in kwargs else args[1]
            self._add_consumer(self._weights.get(id(weight), []), f'{name} uses its weight directly')
        return result

    def _producers_of(self, values: Any) -> Iterator[list[nn.Module]]:
        for leaf in tree_leaves(values):
            if id(leaf) in self._producers:
                yield self._producers[id(leaf)][1]

    def _add_producers(self, result: Any, convs: list[nn.Module]) -> None:
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._producers[id(leaf)] = weakref.ref(leaf, partial(self._producers.pop, id(leaf))), convs

    def _add_consumer(self, convs: list[nn.Module], consumer: nn.Module | str) -> None:
        for conv in convs:
            consumers = self.consumers.setdefault(conv, [])
            consumers += [consumer] if consumer not in consumers else []

    def _before(self, kind: str, module: nn.Module, args: Any) -> None:
        self._running[kind] += 1
        if kind == 'norm':
            for convs in self._producers_of(args):
                self._add_consumer(convs, module)

    def _after(self, kind: str, module: nn.Module, args: Any, output: Any) -> None:
        self._running[kind] -= 1
        if kind == 'conv':
            self.consumers.setdefault(module, [])
            self._add_producers(output, [module])

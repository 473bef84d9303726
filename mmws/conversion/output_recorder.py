"""Recorder of a forward pass: the consumers of each convolution's output, and the uses of its weight."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, Dict, List, Union

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmws.conversion.layer_types import is_conv, is_norm
from mmws.conversion.weight_use import CONVOLUTIONS, WeightUse, caller, holds_filters, stand_in
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
        model: the network.
        consumers: for each convolution that ran, its consumers in order: norms as modules, functions by name. Functions
            that read only the shape (``zeros_like``) do not count. If a function only copies the output, the consumers
            of the copy are recorded. What reads the weight of a convolution outside of its forward is a consumer too.
        functions: calls of convolution functions whose weight is that of no module: the caller's file and line, and the
            function with the name of the weight.
        ran: the norms and the modules with filters that ran.

    The output of a module with a :func:`mmws.conversion.weight_use.stand_in` is that of the function that gets it.

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
        self.functions: dict[str, str] = {}
        self.ran: set[nn.Module] = set()
        self.model = model
        # By id of the tensor; the weak reference removes the entry with the tensor, as an id can be used again.
        self._producers: dict[int, tuple[weakref.ref[Tensor], list[nn.Module]]] = {}
        self._weights: dict[int, list[nn.Module]] = {}
        self._names: dict[int, str] = {}  # of parameters and buffers
        self._stand_ins: dict[int, tuple[Tensor, nn.Module, WeightUse]] = {}  # also their copies
        self._running: list[nn.Module] = []  # norms, and modules with filters, the innermost last
        self._hooks: list[Any] = []
        self._indexing = indexing_shown_to(lambda function, args: self.__torch_function__(function, (), args))

    def __enter__(self) -> OutputRecorder:
        for module in self.model.modules():
            if is_conv(module) or holds_filters(module) or _is_norm(module):
                self._hooks += [module.register_forward_pre_hook(self._before),
                                module.register_forward_hook(self._after)]
                if not _is_norm(module) and 'weight' in module._parameters:
                    self._weights.setdefault(id(module.weight), []).append(module)
                found = stand_in(module)
                if found is not None:
                    self._stand_ins[id(found[0])] = found[0], module, found[1]
        tensors = chain(self.model.named_parameters(), self.model.named_buffers())
        self._names = {id(tensor): name for name, tensor in tensors}
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
        functions, ran = dict(self.functions), set(self.ran)
        try:
            yield
            if self._running:
                raise RuntimeError('the network caught the exception of a layer')
        except BaseException:
            self.consumers, self.functions, self.ran, self._running = before, functions, ran, []
            raise

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, '__name__', str(function))
        returns_no_tensor = result is not None and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if returns_no_tensor or any(map(_is_norm, self._running)):
            return result
        self._record_weights(function, name, args, kwargs, result)
        for convs in self._producers_of((args, kwargs)):
            if name in _COPIES:
                self._add_producers(result, convs)
            elif name not in _SHAPE_ONLY:
                self._add_consumer(convs, name)
        if name in CONVOLUTIONS:
            self._after_convolution(name, args, kwargs, result)
        return result

    def _record_weights(self, function: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if name == '__get__':  # of a property, such as Tensor.data
            name = f".{getattr(getattr(function, '__self__', None), '__name__', name)}"
        if name in _SHAPE_ONLY or result is None:
            return
        convolved = _weight_argument(args, kwargs) if name in CONVOLUTIONS else None
        for leaf in tree_leaves(args[:1] if name in _COPIES else (args, kwargs)):
            if id(leaf) in self._stand_ins:
                _, conv, use = self._stand_ins[id(leaf)]
                if name in _COPIES:
                    self._stand_ins[id(result)] = result, conv, use
                elif leaf is not convolved:
                    use.others[_call(name)] = None
            owners = self._weights.get(id(leaf), [])
            running = [conv for conv in owners if conv in self._running]
            for conv in running:
                if (found := stand_in(conv)) is not None:
                    found[1].others[f'{_call(name)} under another name'] = None
            if not running:
                self._add_consumer(owners, f'{name} uses its weight directly')

    def _after_convolution(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        weight, groups_at = _weight_argument(args, kwargs), CONVOLUTIONS[name]
        if id(weight) in self._stand_ins:
            _, conv, use = self._stand_ins[id(weight)]
            groups = (kwargs.get('groups', 1) if len(args) <= groups_at else args[groups_at]) if groups_at else 0
            use.functions.add((name, groups))
            self.consumers.setdefault(conv, [])
            self._add_producers(result, [conv])
        elif id(weight) not in self._weights and not (self._running and is_conv(self._running[-1])):
            self.functions[caller()] = f'{name}, weight: {self._names.get(id(weight), "computed")}'

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

    def _before(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)
        if _is_norm(module):
            for convs in self._producers_of(args):
                self._add_consumer(convs, module)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        self.ran.add(module)
        if is_conv(module):
            self.consumers.setdefault(module, [])
            found = stand_in(module)
            if found is None or not found[1].functions:
                self._add_producers(output, [module])


def _weight_argument(args: Any, kwargs: Any) -> Any:
    return kwargs['weight'] if 'weight' in kwargs else args[1]


def _call(name: str) -> str:
    return name if name.startswith('.') else f'{name}()'  # a property, a function


def _is_norm(module: nn.Module) -> bool:
    return is_norm(module) or isinstance(module, nn.LayerNorm)

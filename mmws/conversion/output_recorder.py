"""Recorder of a forward pass: the consumers of each convolution's output, and the uses of its weight."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType, FunctionType, ModuleType
from typing import Any, Dict, List, Union

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmws.conversion.averaged_models import averaged_models
from mmws.conversion.layer_types import is_any_norm, is_batch_norm, is_conv, may_be_conv, only_normalizes
from mmws.conversion.weight_recorder import (
    COPY_FUNCTIONS,
    CopiesByWeight,
    WeightRecorder,
    describe_call,
    reads_values,
)
from mmws.conversion.weight_use import CONVOLUTIONS, OTHER_CONVOLUTIONS
from mmws.ops.torch_compat import indexing_shown_to, tree_leaves

__all__ = ['LEAVES', 'NORM_FUNCTIONS', 'Consumers', 'OutputRecorder', 'add_consumers']

Consumers = Dict[nn.Module, List[Union[nn.Module, str]]]
NORM_FUNCTIONS = {'batch_norm': (5, 'training'), 'instance_norm': (5, 'use_input_stats'), 'group_norm': (0, '')}
"""Functions that normalize; place and name of the argument that tells whether the statistics are those of the input."""
LEAVES = 'the output leaves the network'
_FIXED = 'with fixed statistics'


def add_consumers(known: Consumers, new: Consumers) -> None:
    """Add the consumers that ``new`` has to those of ``known``, in place."""
    for conv, consumers in new.items():
        before = known.setdefault(conv, [])
        before += [consumer for consumer in consumers if consumer not in before]


class OutputRecorder(TorchFunctionMode):
    """Context manager that records the consumers of each convolution's output.

    Args:
        model: the network.
        copies: see :class:`WeightRecorder`, if ``model`` is a copy of the user's network.

    Attributes:
        consumers: for each convolution that ran, its consumers in order: norms as modules, functions by name. Functions
            that read only the shape (``zeros_like``) do not count. If a function only copies the output, the consumers
            of the copy are recorded. What reads the weight of a convolution outside of its forward is a consumer
            too; the update of an averaged model is none.
        weights: the record of the uses of weights, with the calls of convolution functions outside of modules.
        ran: the norms and the modules with filters that ran.
        ran_whole: whether the network ran as a whole, see :func:`mmws.conversion.run_in_parts.run_and_record`.

    The output of a convolution is the result of the convolution function that got its weight, as its forward may call
    other functions too. If none got it (the forward computes another weight), it is the output of the module.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Sigmoid())
        >>> with OutputRecorder(net) as recorder:
        ...     _ = net(torch.zeros(1, 3, 4, 4))
        >>> recorder.consumers[net[0]] == [net[1]], recorder.consumers[net[3]]
        (True, ['sigmoid'])
    """

    def __init__(self, model: nn.Module, copies: CopiesByWeight | None = None) -> None:
        super().__init__()
        self.consumers: Consumers = {}
        self.weights = WeightRecorder(model, copies)
        self.ran: set[nn.Module] = set()
        self.ran_whole = False
        self.model = model
        # By id of the tensor; the weak reference removes the entry with the tensor, as an id can be used again.
        self._producers: dict[int, tuple[weakref.ref[Tensor], list[nn.Module]]] = {}
        self._running: list[nn.Module] = []  # norms, and modules with filters, the innermost last
        self._seen_in_function: set[nn.Module] = set()
        self._hooks: list[Any] = []
        self._averages = averaged_models(model)
        self._updating_average = False
        self._indexing = indexing_shown_to(lambda function, args: self.__torch_function__(function, (), args))

    def __enter__(self) -> OutputRecorder:
        for module in self.model.modules():
            if may_be_conv(module) or is_any_norm(module):
                self._hooks += [module.register_forward_pre_hook(partial(self._before, module), with_kwargs=True),
                                module.register_forward_hook(partial(self._after, module))]
        for average in self._averages:
            vars(average)['update_parameters'] = partial(self._update_average, average.update_parameters)
        self._indexing.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._indexing.__exit__(*exception)
        for hook in self._hooks:
            hook.remove()
        for average in self._averages:
            del vars(average)['update_parameters']

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Context of a forward pass.

        If it fails, or a layer inside it fails, the consumers and functions that it recorded are removed. The records
        of weights (``WeightUse``) stay: at worst a convolution stays plain.

        Raises:
            RuntimeError: if a layer raised an exception that the network caught. The record is incomplete then.
        """
        before = {conv: list(consumers) for conv, consumers in self.consumers.items()}
        functions, ran = copy.deepcopy(self.weights.functions), set(self.ran)
        try:
            yield
            if self._running:
                raise RuntimeError('the network caught the exception of a layer')
        except BaseException:
            self.consumers, self.weights.functions, self.ran, self._running = before, functions, ran, []
            raise

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self._updating_average or any(map(only_normalizes, self._running)):
            return result
        name = describe_call(function)
        outside = self.weights.record(name, args, kwargs, result, self._running)
        self._add_consumer(outside, f'{name} uses its weight directly')
        if name in COPY_FUNCTIONS:
            for convs in self._producers_of(tree_leaves(args[:1] or kwargs.get('input'))):
                self._add_producers(result, convs)
        elif reads_values(name):
            for convs in self._producers_of(tree_leaves((args, kwargs))):
                self._add_consumer(convs, self._consumer(name, args, kwargs))
        is_convolution = name in CONVOLUTIONS or name in OTHER_CONVOLUTIONS
        conv = self.weights.convolution(name, args, kwargs, self._running) if is_convolution else None
        if conv is not None:
            self._seen_in_function.add(conv)
            self.consumers.setdefault(conv, [])
            self._add_producers(result, [conv])
        return result

    def producers_of(self, values: Any) -> set[nn.Module]:
        """Return the convolutions of which ``values`` contains an output."""
        return {conv for convs in self._producers_of(_tensors_of(values)) for conv in convs}

    def record_output(self, output: Any) -> None:
        """Record the output of the whole network: what leaves the network has a use beside its other consumers."""
        for convs in self._producers_of(_tensors_of(output)):
            self._add_consumer(convs, LEAVES)

    def _consumer(self, function: str, args: Any, kwargs: Any) -> nn.Module | str:
        """Return the norm whose forward calls a norm function, or the name of the function."""
        norms = [module for module in self._running if is_any_norm(module)]
        if function not in NORM_FUNCTIONS:
            return function
        position, keyword = NORM_FUNCTIONS[function]
        if position and self.model.training and not (args[position] if len(args) > position else kwargs.get(keyword)):
            return f'{function} {_FIXED}'
        return norms[-1] if norms else function

    def _update_average(self, update: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._updating_average = True
        try:
            update(*args, **kwargs)
        finally:
            self._updating_average = False

    def _producers_of(self, leaves: Iterable[Any]) -> Iterator[list[nn.Module]]:
        for leaf in leaves:
            if id(leaf) in self._producers:
                yield self._producers[id(leaf)][1]

    def _add_producers(self, result: Any, convs: list[nn.Module]) -> None:
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._producers[id(leaf)] = weakref.ref(leaf, partial(self._producers.pop, id(leaf))), convs

    def _add_consumer(self, convs: list[nn.Module], consumer: nn.Module | str) -> None:
        add_consumers(self.consumers, {conv: [consumer] for conv in convs})

    def _before(self, module: nn.Module, called: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append(module)
        if only_normalizes(module):
            # A BatchNorm of an unknown class stays as it is, and may never use the statistics of its input.
            fixed = self.model.training and not module.training and not is_batch_norm(module)
            tracks = getattr(module, 'running_mean', None) is not None
            for convs in self._producers_of(tree_leaves((args, kwargs))):
                self._add_consumer(convs, f'{type(module).__name__} {_FIXED}' if fixed and tracks else module)

    def _after(self, module: nn.Module, called: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        self.ran.add(module)
        if is_conv(module):
            self.consumers.setdefault(module, [])
            if module not in self._seen_in_function:
                self._add_producers(output, [module])


def _tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the tensors that an output of any class refers to, in containers and in attributes of objects."""
    pending, seen = [output], set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen and not isinstance(value, (nn.Module, ModuleType, FunctionType, FrameType, type)):
            seen.add(id(value))
            pending += gc.get_referents(value)

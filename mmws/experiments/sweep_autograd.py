"""Consumers of each convolution's output in the autograd graph: the sweep's second witness. Used by `sweep_run.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from mmws.conversion.layer_types import is_conv
from mmws.conversion.output_recorder import Consumers
from mmws.ops.torch_compat import tree_leaves

__all__ = ['AutogradConsumers']

_COPIES = 'Clone', 'ToCopy'  # names of nodes, before 'Backward'
_VIEWS = 'View', 'UnsafeView', 'ReshapeAlias'


class AutogradConsumers:
    """Context manager that finds the consumers of each convolution's output in the graph of the losses.

    It does not depend on :class:`mmws.conversion.output_recorder.OutputRecorder`, which decides the placement. The
    recorder sees calls of torch functions from Python. The graph shows each operation that has a gradient, also one
    that is called from C++, and no other.

    Attributes:
        consumers: for each convolution in the graph: ``'group_norm'`` for a norm of its output, and the names of other
            operations.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1), nn.ReLU())
        >>> with AutogradConsumers(net) as graph:
        ...     graph.add(net(torch.zeros(1, 3, 4, 4)))
        >>> graph.consumers == {net[0]: ['group_norm'], net[2]: ['ReluBackward0']}
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self.consumers: Consumers = {}
        self._model = model
        self._convs: dict[Any, nn.Module] = {}  # by the node that computes the output
        self._hooks: list[Any] = []

    def __enter__(self) -> AutogradConsumers:
        self._hooks = [module.register_forward_hook(partial(self._after, module))
                       for module in self._model.modules() if is_conv(module)]
        return self

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._convs.clear()  # a node keeps its graph

    def add(self, result: Any) -> None:
        """Add the consumers in the graph of ``result``, the losses or the output of the network."""
        roots = [leaf.grad_fn for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
        nodes = _graph(roots)
        copies = {node for node in nodes if _is(node, _COPIES)}
        for node in nodes:
            source = node.next_functions[0][0] if 'BatchNorm' in node.name() else None
            copies |= {source} if _is(source, _VIEWS) else set()  # InstanceNorm is the BatchNorm of a view
        for root in roots:
            self._add(root, 'the output leaves the network', copies)
        for node in nodes:
            is_norm = 'BatchNorm' in node.name() or 'GroupNorm' in node.name()
            for source, _ in node.next_functions if node not in copies else ():
                self._add(source, 'group_norm' if is_norm else node.name(), copies)

    def _after(self, conv: nn.Module, called: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            self._convs[output.grad_fn] = conv

    def _add(self, source: Any, consumer: str, copies: set[Any]) -> None:
        while source in copies:
            source = source.next_functions[0][0]
        if source in self._convs:
            known = self.consumers.setdefault(self._convs[source], [])
            known += [consumer] if consumer not in known else []


def _is(node: Any, kinds: tuple[str, ...]) -> bool:
    return node is not None and node.name().partition('Backward')[0] in kinds


def _graph(roots: list[Any]) -> list[Any]:
    """Return the nodes of a graph."""
    nodes = dict.fromkeys(roots)
    todo = list(nodes)
    while todo:
        new = {source for source, _ in todo.pop().next_functions if source is not None} - nodes.keys()
        nodes.update(dict.fromkeys(new))
        todo += new
    return list(nodes)

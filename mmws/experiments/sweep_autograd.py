"""Consumers of each convolution's output in the autograd graph: the sweep's second record. Used by `sweep_run.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from mmws.conversion.layer_types import is_conv
from mmws.conversion.output_recorder import Consumers, add_consumers
from mmws.ops.torch_compat import saved_value, tree_leaves

__all__ = ['NORM', 'UNSEEN', 'AutogradConsumers']

NORM = 'group_norm'  # any norm; the name is in NORM_FUNCTIONS of the recorder
UNSEEN = 'its weight gets a gradient, but its output is not seen'
_COPIES = 'Clone', 'ToCopy'  # names of nodes, before 'Backward'
_VIEWS = 'View', 'UnsafeView', 'ReshapeAlias'


class AutogradConsumers:
    """Context manager that finds the consumers of each convolution's output in the graph of the losses.

    It does not depend on :class:`mmws.conversion.output_recorder.OutputRecorder`, which decides the placement. The
    recorder sees calls of torch functions from Python. The graph shows each operation through which a gradient flows,
    also one that is called from C++, and no other: no detached use, and nothing inside a reentrant checkpoint. The
    output of a convolution is that of its module.

    Attributes:
        consumers: for each convolution in the graph: :data:`NORM` for a norm of its output, the names of other
            operations, or :data:`UNSEEN`. A convolution that gets no gradient is not there.

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

    def add(self, result: Any) -> None:
        """Add the consumers in the graph of ``result``, the losses or the output of the network."""
        roots = [leaf.grad_fn for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
        nodes = _graph(roots)
        copies = {node for node in nodes if _is(node, _COPIES)}
        for node in nodes:  # InstanceNorm is the BatchNorm of a view with one image
            of_one_image = 'BatchNorm' in node.name() and len(saved_value(node, 'input', ())) == 1
            if of_one_image and _is(node.next_functions[0][0], _VIEWS):
                copies.add(node.next_functions[0][0])
        for root in roots:
            self._add(root, 'the output leaves the network', copies)
        for node in nodes:
            for source, _ in node.next_functions if node not in copies else ():
                self._add(source, NORM if _normalizes(node) else node.name(), copies)
        trained = {id(node.variable) for node in nodes if hasattr(node, 'variable')}
        for conv in filter(is_conv, self._model.modules()):
            if id(conv._parameters.get('weight')) in trained and conv not in self.consumers:
                self.consumers[conv] = [UNSEEN]

    def _after(self, conv: nn.Module, called: nn.Module, args: Any, output: Any) -> None:
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                self._convs[leaf.grad_fn] = conv

    def _add(self, source: Any, consumer: str, copies: set[Any]) -> None:
        while source in copies:
            source = source.next_functions[0][0]
        if source in self._convs:
            add_consumers(self.consumers, {self._convs[source]: [consumer]})


def _normalizes(node: Any) -> bool:
    name = node.name()
    return 'GroupNorm' in name or ('BatchNorm' in name and saved_value(node, 'training', True))


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

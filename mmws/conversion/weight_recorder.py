"""Recorder of what reads the weights of convolutions during a forward pass. A part of ``OutputRecorder``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from types import FrameType
from typing import Any, Dict, List

from torch import Tensor, nn

from mmws.conversion.layer_types import is_conv, may_be_conv
from mmws.conversion.weight_use import CONVOLUTIONS, OTHER_CONVOLUTIONS, WeightUse, stand_in
from mmws.ops.torch_compat import tree_leaves

__all__ = ['COPY_FUNCTIONS', 'SHAPE_ONLY', 'CopiesByWeight', 'WeightRecorder', 'describe_call', 'reads_values']

COPY_FUNCTIONS = {'contiguous', 'to', 'half', 'bfloat16', 'float', 'double', 'type', 'type_as', 'cpu', 'cuda', 'clone',
                  'detach'}
"""Functions whose result stands for their first argument; the others tell a dtype or a device."""
SHAPE_ONLY = {'new_zeros', 'new_ones', 'new_full', 'new_empty', 'new_tensor', 'zeros_like', 'ones_like', 'full_like',
              'empty_like', 'rand_like', 'randn_like'}
"""Functions that read only the shape, dtype and device of a tensor, and return a new one."""
_METADATA = SHAPE_ONLY | {  # and the properties `.is_...`
    # functions
    'size', 'dim', 'ndimension', 'stride', 'numel', 'nelement', 'element_size', 'storage_offset', 'get_device',
    '__len__', '__hash__', 'is_floating_point', 'is_complex', 'is_contiguous', 'is_signed', 'is_same_size',
    'is_inference', 'has_names', 'result_type', 'can_cast', 'promote_types',
    # properties
    '.shape', '.dtype', '.device', '.layout', '.ndim', '.names', '.itemsize', '.nbytes', '.output_nr', '._version'}
_OF_PARAMETERS = {'.requires_grad', '.requires_grad =', 'requires_grad_', '.is_leaf', '.grad', '.grad_fn'}
"""Properties that a parameter and a standardized weight do not share."""
_NO_VALUES = _METADATA | _OF_PARAMETERS | {'register_hook', 'retain_grad'}
CopiesByWeight = Dict[int, List[nn.Module]]
"""The id of a weight of the user's network -> the copied modules that have this weight."""


class WeightRecorder:
    """Record the uses of weights: in the :class:`WeightUse` of each stand-in, and in ``functions``.

    Args:
        model: the network.
        copies: the id of each weight of the user's network, with the copied modules that have this weight. Code may
            still refer to the user's network and read it.

    Attributes:
        functions: calls of convolution functions with a weight that belongs to no module (a buffer, or a computed
            tensor), by file and line.
    """

    def __init__(self, model: nn.Module, copies: CopiesByWeight | None) -> None:
        self.functions: dict[str, list[str]] = {}
        self._owners: CopiesByWeight = {key: [*modules] for key, modules in (copies or {}).items()}
        self._stand_ins: dict[int, tuple[Tensor, nn.Module, WeightUse]] = {}  # also their copies
        for module in model.modules():
            if may_be_conv(module) and 'weight' in module._parameters:
                self._owners.setdefault(id(module.weight), []).append(module)
                found = stand_in(module)
                if found is not None:
                    self._stand_ins[id(found.weight)] = found.weight, module, found.use
        self._names = {id(tensor): name for name, tensor in chain(model.named_parameters(), model.named_buffers())}

    def record(self, call: str, args: Any, kwargs: Any, result: Any, running: Sequence[nn.Module]) -> list[nn.Module]:
        """Record a call, and return the convolutions whose weight it reads outside of their forward.

        Args:
            call: the function, as :func:`describe_call` returns it.
            args, kwargs, result: of the call.
            running: the norms and the modules with filters whose forward runs, the innermost last.
        """
        if call in _METADATA or (call.startswith('.is_') and call not in _OF_PARAMETERS):
            return []
        convolved, outside = _weight_argument(args, kwargs) if call in CONVOLUTIONS else None, []
        read = tree_leaves((args[:1] or kwargs.get('input')) if call in COPY_FUNCTIONS else (args, kwargs))
        for leaf in read:
            if id(leaf) in self._stand_ins:
                _, conv, use = self._stand_ins[id(leaf)]
                if call in COPY_FUNCTIONS:
                    self._stand_ins[id(result)] = result, conv, use
                elif leaf is not convolved or sum(other is leaf for other in read) > 1:
                    use.others[_text(call)] = None
            owners = [] if call in _OF_PARAMETERS else self._owners.get(id(leaf), [])
            inside = [conv for conv in owners if conv in running]
            for conv in inside:
                if (found := stand_in(conv)) is not None:
                    found.use.others[f'{_text(call)} under another name'] = None
            outside += [] if inside else owners
        return outside

    def convolution(self, call: str, args: Any, kwargs: Any, running: Sequence[nn.Module]) -> nn.Module | None:
        """Return the module whose weight a convolution function got; if no module has this weight, record the call.

        A call outside of the module's forward does not count, see :meth:`record`.
        """
        weight = _weight_argument(args, kwargs)
        if call in CONVOLUTIONS and running and weight is running[-1]._parameters.get('weight', self):
            return running[-1]
        if id(weight) in self._stand_ins:
            _, conv, use = self._stand_ins[id(weight)]
            if call in OTHER_CONVOLUTIONS:
                return None
            use.functions.add((call, _groups(call, args, kwargs)))
            use.calls += 1
            return conv
        name = self._names.get(id(weight), '')
        caller = running[-1] if running and is_conv(running[-1]) else None
        found = stand_in(caller) if caller is not None else None
        if id(weight) not in self._owners and (caller is None or found is not None):
            functions = self.functions if name or found is None else found.use.computed
            texts = functions.setdefault(_caller(), [])
            text = f'{call}, weight: {name or "computed"}'
            texts += [text] if text not in texts else []
        return None


def reads_values(call: str) -> bool:
    """Return whether a call reads more of a tensor than its shape, dtype, device and place in the graph."""
    return call not in _NO_VALUES and not call.startswith('.is_')


def describe_call(function: Any) -> str:
    """Return the name of a function of torch, and for a property of a tensor that name after a dot, as ``'.data'``."""
    name = getattr(function, '__name__', str(function))
    if name not in ('__get__', '__set__'):
        return str(name).partition('.')[0]  # of an operator: `conv2d.default`
    return f".{getattr(getattr(function, '__self__', None), '__name__', name)}{' =' if name == '__set__' else ''}"


def _text(call: str) -> str:
    return call if call.startswith('.') else f'{call}()'


def _weight_argument(args: Any, kwargs: Any) -> Any:
    return kwargs['weight'] if 'weight' in kwargs else args[1]


def _groups(call: str, args: Any, kwargs: Any) -> int:
    """Return ``groups`` of a call of a transposed convolution, where the layout of the weight depends on it; else 0."""
    position = CONVOLUTIONS[call]
    if position is None:
        return 0
    return args[position] if len(args) > position else kwargs.get('groups', 1)  # type: ignore[no-any-return]


def _caller() -> str:
    """Return the file, the line and the function of the innermost code outside of torch and of this package."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get('__name__', '').split('.')[0] in ('torch', 'mmws'):
        frame = frame.f_back
    return f'{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}' if frame is not None else 'torch'

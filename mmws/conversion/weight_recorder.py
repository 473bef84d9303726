"""Recorder of what reads the weights of convolutions during a forward pass. A part of ``OutputRecorder``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from types import FrameType
from typing import Any

from torch import Tensor, nn

from mmws.conversion.layer_types import is_conv, may_be_conv
from mmws.conversion.weight_use import CONVOLUTIONS, WeightUse, stand_in
from mmws.ops.torch_compat import tree_leaves

__all__ = ['COPIES', 'WeightRecorder', 'describe_call']

COPIES = {'contiguous', 'to', 'float', 'type', 'type_as', 'clone', 'detach'}
"""Functions whose result stands for their first argument."""
_METADATA = {
    # functions
    'size', 'dim', 'ndimension', 'stride', 'numel', 'nelement', 'element_size', 'storage_offset', 'get_device',
    '__len__', '__hash__', 'is_floating_point', 'is_complex', 'is_contiguous', 'is_signed', 'is_same_size',
    'is_inference', 'has_names',
    'new_zeros', 'new_ones', 'new_full', 'new_empty', 'new_tensor', 'zeros_like', 'ones_like', 'full_like',
    'empty_like', 'rand_like', 'randn_like', 'result_type', 'can_cast', 'promote_types',
    # properties
    '.shape', '.dtype', '.device', '.layout', '.ndim', '.requires_grad', '.is_leaf', '.grad', '.grad_fn', '.names',
    '.itemsize', '.nbytes', '.is_cuda', '.is_cpu', '.is_meta', '.is_sparse', '.is_sparse_csr', '.is_quantized',
    '.is_mkldnn', '.is_mps', '.is_xpu', '.is_nested', '.is_vulkan', '.is_xla', '.is_ipu', '.is_maia',
    '.is_mtia', '.output_nr', '._version'}


class WeightRecorder:
    """Record the uses of weights: in the :class:`WeightUse` of each stand-in, and in ``functions``.

    Args:
        model: the network.
        originals: the copies of the modules that own a weight, by its id, if ``model`` is a copy. Code that refers to
            the original network would read that weight.

    Attributes:
        functions: calls of convolution functions whose weight is that of no module, by file and line of the caller.
    """

    def __init__(self, model: nn.Module, originals: Mapping[int, Sequence[nn.Module]]) -> None:
        self.functions: dict[str, list[str]] = {}
        self._owners: dict[int, list[nn.Module]] = {key: list(modules) for key, modules in originals.items()}
        self._stand_ins: dict[int, tuple[Tensor, nn.Module, WeightUse]] = {}  # also their copies
        for module in model.modules():
            if may_be_conv(module) and 'weight' in module._parameters:
                self._owners.setdefault(id(module.weight), []).append(module)
                found = stand_in(module)
                if found is not None:
                    self._stand_ins[id(found[0])] = found[0], module, found[1]
        self._names = {id(tensor): name for name, tensor in chain(model.named_parameters(), model.named_buffers())}

    def record(self, call: str, args: Any, kwargs: Any, result: Any, running: Sequence[nn.Module]) -> list[nn.Module]:
        """Record a call, and return the convolutions whose weight it reads outside of their forward.

        Args:
            call: the function, as :func:`describe_call` returns it.
            args, kwargs, result: of the call.
            running: the norms and the modules with filters whose forward runs, the innermost last.
        """
        if call in _METADATA:
            return []
        convolved, outside = _weight_argument(args, kwargs) if call in CONVOLUTIONS else None, []
        read = tree_leaves(args[:1] if call in COPIES else (args, kwargs))
        for leaf in read:
            if id(leaf) in self._stand_ins:
                _, conv, use = self._stand_ins[id(leaf)]
                if call in COPIES:
                    self._stand_ins[id(result)] = result, conv, use
                elif leaf is not convolved or sum(other is leaf for other in read) > 1:
                    use.others[_text(call)] = None
            owners = self._owners.get(id(leaf), [])
            inside = [conv for conv in owners if conv in running]
            for conv in inside:
                if (found := stand_in(conv)) is not None:
                    found[1].others[f'{_text(call)} under another name'] = None
            outside += [] if inside else owners
        return outside

    def convolution(self, call: str, args: Any, kwargs: Any, running: Sequence[nn.Module]) -> nn.Module | None:
        """Return the module whose stand-in a convolution function got; record the call if the weight is of none."""
        weight = _weight_argument(args, kwargs)
        if id(weight) in self._stand_ins:
            _, conv, use = self._stand_ins[id(weight)]
            at = CONVOLUTIONS[call]
            use.functions.add((call, (kwargs.get('groups', 1) if len(args) <= at else args[at]) if at else 0))
            return conv
        name = self._names.get(id(weight), '')
        inner = running[-1] if running else None
        if id(weight) not in self._owners and (
                inner is None or not is_conv(inner) or (name and stand_in(inner) is not None)):
            texts = self.functions.setdefault(_caller(), [])
            text = f'{call}, weight: {name or "computed"}'
            texts += [text] if text not in texts else []
        return None


def describe_call(function: Any) -> str:
    """Return the name of a function of torch, and for a property of a tensor that name after a dot, as ``'.data'``."""
    name = getattr(function, '__name__', str(function))
    if name not in ('__get__', '__set__'):
        return str(name)
    return f".{getattr(getattr(function, '__self__', None), '__name__', name)}{' =' if name == '__set__' else ''}"


def _text(call: str) -> str:
    return call if call.startswith('.') else f'{call}()'


def _weight_argument(args: Any, kwargs: Any) -> Any:
    return kwargs['weight'] if 'weight' in kwargs else args[1]


def _caller() -> str:
    """Return the file, the line and the function of the innermost code outside of torch and of this package."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get('__name__', '').split('.')[0] in ('torch', 'mmws'):
        frame = frame.f_back
    return f'{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}' if frame is not None else 'torch'

"""How a convolution of any class uses its weight: seen in a run in which another tensor has the weight's place."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmws.errors import format_exception

__all__ = ['CONVOLUTIONS', 'OTHER_CONVOLUTIONS', 'StandIn', 'WeightUse', 'merge_texts', 'stand_in',
           'substitute_weight_', 'with_weight']

CONVOLUTIONS = {f'conv{kind}{dims}d': 6 if kind else None for kind in ('', '_transpose') for dims in (1, 2, 3)}
"""The convolution functions of torch. Their second argument is the weight.

The value is the position of the argument ``groups``, for transposed convolutions only: the layout of their weight
depends on it.
"""

OTHER_CONVOLUTIONS = {'convolution', '_convolution', 'deform_conv2d'}
"""Functions of torch and torchvision whose second argument is a weight too, in a layout that other arguments tell."""


@dataclass
class WeightUse:
    """How a module used its weight in all forward passes of a dry run.

    Attributes:
        functions: convolution functions that got the weight as it is; with ``groups`` for a transposed convolution.
        calls: number of these calls, within one run.
        others: what else read it, by name.
        computed: calls of convolution functions with a computed weight in the forward, by file and line.
        attributes: names that the forward assigned or deleted. It runs on a copy of the module, so the module itself
            would not change.
        modes: the values of ``training`` with which a forward pass ended without an error.
        unused: those of them with which a forward pass called no convolution function on the weight.
        kept: True if the forward keeps a reference to the module outside of it.
        error: the first exception with which a run of the module alone ended.
        refused: the first exception that only another tensor in the weight's place caused.
    """

    functions: set[tuple[str, int]] = field(default_factory=set)
    calls: int = 0
    others: dict[str, None] = field(default_factory=dict)  # in order
    computed: dict[str, list[str]] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    modes: set[bool] = field(default_factory=set)
    unused: set[bool] = field(default_factory=set)
    kept: bool = False
    error: str = ''
    refused: str = ''

    def add(self, other: WeightUse) -> None:
        """Add what another dry run showed."""
        self.functions |= other.functions
        self.others.update(other.others)
        merge_texts(self.computed, other.computed)
        self.attributes |= other.attributes
        self.modes |= other.modes
        self.unused |= other.unused
        self.kept |= other.kept
        self.error = self.error or other.error
        self.refused = self.refused or other.refused

    def in_convolution(self) -> bool:
        """Return whether a convolution function got the weight, under any name."""
        return bool(self.functions) or any('conv' in other for other in self.others)

    def is_transposed(self) -> bool:
        """Return whether the weight reached a transposed convolution, in whose layout the filters are the columns."""
        return any(function.startswith('conv_transpose') for function, _ in self.functions)

    def reason(self, conv: nn.Module) -> str:
        """Return the reason why the weight cannot be replaced by a standardized one; empty if it can."""
        name = type(conv).__name__
        weight = conv._parameters.get('weight')
        if weight is None:
            return f'{name}: its weight is no parameter, other code computes it'
        if vars(weight):
            return f'{name}: its weight has the attributes {", ".join(vars(weight))}'
        if self.refused:
            return f'{name}: its forward accepts its own weight only ({self.refused})'
        if not self.modes:
            why = f' ({self.error})' if self.error else ''
            return (f'{name}: it did not run{why}, so the use of its weight is unknown; give convert_ `inputs` that '
                    'reach it')
        functions = {function for function, _ in self.functions}
        if self.others:
            return f'{name}: weight {"also " if functions else ""}read by {", ".join(self.others)}'
        if not functions:
            return f'{name}: its weight reached no convolution function'
        if self.unused:
            return f'{name}: in {_mode(min(self.unused))} mode no convolution function got its weight'
        if self.attributes:
            return f'{name}: its forward assigns {", ".join(sorted(self.attributes))}'
        if self.kept:
            return f'{name}: its forward keeps a reference to the module elsewhere'
        if len(self.modes) < 2:
            return f'{name}: it ran in {_mode(max(self.modes))} mode only'
        kind, groups = ('conv_transpose', getattr(conv, 'groups', 1)) if self.is_transposed() else ('conv', 0)
        if self.functions != {(f'{kind}{weight.dim() - 2}d', groups)}:
            return f'{name}: its weight has another layout in {", ".join(sorted(functions))}'
        return ''


def merge_texts(texts: dict[str, list[str]], others: dict[str, list[str]]) -> None:
    """Add to each list in ``texts`` what the list of the same key in ``others`` has beside it."""
    for key, values in others.items():
        known = texts.setdefault(key, [])
        known += [value for value in values if value not in known]


def _mode(training: bool) -> str:
    return 'training' if training else 'evaluation'


class StandIn(NamedTuple):
    """The tensor in the place of a module's weight, and the record of its use."""

    weight: Tensor
    use: WeightUse


def with_weight(conv: Any, weight: Tensor, plain: type[nn.Module]) -> nn.Module:
    """Return a shallow copy of ``conv`` of the class ``plain`` that has another ``weight``."""
    replica = object.__new__(plain)
    replica.__dict__.update(conv.__dict__, _parameters={**conv._parameters, 'weight': weight})
    replica.__dict__.pop('weight', None)  # pruning and FSDP keep the weight as a plain attribute
    return replica


def substitute_weight_(conv: Any) -> None:
    """Let the forward of ``conv`` run as it would after a conversion, with another tensor in the weight's place.

    :func:`stand_in` returns that tensor.
    """
    tensor = torch.empty_like(conv.weight) if conv.weight.is_meta else conv.weight.detach().clone()
    tensor.requires_grad_(conv.weight.requires_grad)
    use, plain = WeightUse(), type(conv)
    vars(conv)['mmws_stand_in'] = StandIn(tensor, use)

    def forward(*args: Any, **kwargs: Any) -> Any:
        replica = with_weight(conv, tensor, plain)
        del replica.forward
        before, calls = _attributes(replica), use.calls
        try:
            output = plain.forward(replica, *args, **kwargs)
        except Exception as error:  # foreign code, which may raise anything
            seen = copy.deepcopy(vars(use))
            try:
                output = plain.forward(conv, *args, **kwargs)
            except Exception:
                raise error from None
            finally:
                vars(use).update(seen)  # the run with its own weight proves nothing
            use.refused = use.refused or format_exception(error)
            return output
        after = _attributes(replica)
        use.attributes |= {name for name in before.keys() | after.keys()
                           if before.get(name, before) is not after.get(name, after)}
        use.modes.add(bool(conv.training))
        use.unused |= {bool(conv.training)} if use.calls == calls else set()
        use.kept |= weakref.getweakrefcount(replica) > 0
        reference = weakref.ref(replica)
        del replica
        use.kept |= not torch.is_grad_enabled() and _is_alive(reference)  # a gradient function may refer to it
        return output

    forward.__signature__ = inspect.signature(conv.forward)  # type: ignore[attr-defined]
    vars(conv)['forward'] = forward


def _is_alive(reference: weakref.ref[Any]) -> bool:
    if reference() is not None:
        gc.collect()  # of reference cycles
    return reference() is not None


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {**vars(module), **module._parameters}


def stand_in(module: nn.Module) -> StandIn | None:
    """Return what :func:`substitute_weight_` gave ``module``, None if nothing."""
    return vars(module).get('mmws_stand_in')

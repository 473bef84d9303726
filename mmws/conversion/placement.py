"""Rules of placement: a convolution is standardized if only norms consume its output.

To change the treatment of a function (say ``cat``), edit :func:`decide`, ``NORM_FUNCTIONS`` in ``output_recorder.py``,
or ``COPY_FUNCTIONS`` and ``SHAPE_ONLY`` in ``weight_recorder.py``. ``dry_run.py`` is the dry run, ``module_tree.py``
the fallback without one.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from mmws.conversion.decision import LAYER_NORM_REASON, Decision
from mmws.conversion.dry_run import dry_run
from mmws.conversion.layer_types import is_conv, is_trained
from mmws.conversion.module_tree import decide_from_tree
from mmws.conversion.options import Options
from mmws.conversion.output_recorder import LEAVES, NORM_FUNCTIONS
from mmws.conversion.weight_use import merge_texts
from mmws.errors import WSError, near_matches

__all__ = ['Placement', 'apply_globs_', 'decide', 'find_placement']

NOT_RUN = 'it ran alone only, so what follows it is unknown; give convert_ `inputs` that reach it'
RAN_ALONE = 'it ran alone only, without the optional arguments of its forward; give convert_ `inputs` that reach it'
MAY_BE_CONV = 'it did not run, so it may be a convolution or not; give convert_ `inputs` that reach it'


@dataclass
class Placement:
    """Placement of Weight Standardization in a model: a decision for each convolution, in the order of ``modules()``.

    ``pointwise`` has the norms whose input has a single value per channel and image; ``functions`` the convolution
    functions outside of modules, see :class:`mmws.conversion.weight_recorder.WeightRecorder`.
    """

    decisions: dict[nn.Module, Decision]
    pointwise: set[nn.Module]
    functions: dict[str, list[str]]

    def producers(self) -> dict[nn.Module, nn.Module]:
        """Return the convolution before each norm; if there are several, one that trains."""
        trained_last = sorted(self.decisions, key=is_trained)
        return {norm: conv for conv in trained_last for norm in self.decisions[conv].norms}


def find_placement(model: nn.Module, inputs: Any = None) -> Placement:
    """Decide for each convolution of ``model`` from a dry run; from the module tree if the convolution does not run.

    Args:
        model: the network; it does not change.
        inputs: see :func:`mmws.conversion.dry_run.dry_run`.

    Raises:
        WSError: if the network cannot be copied to run on ``inputs``, or runs on them in neither mode.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> [decision.reason for decision in find_placement(net).decisions.values()]
        ['', 'no norm follows: the output leaves the network']
    """
    run = dry_run(model, inputs)
    decisions = {**decide_from_tree(model), **{conv: decide(run.consumers[conv]) for conv in run.consumers}}
    for module, use in run.uses.items():
        if not is_conv(module) and use.modes and not use.in_convolution():
            decisions.pop(module, None)  # its weight has the size of filters, but it is none
        else:
            reason = use.reason(module) if use.others else NOT_RUN if use.modes else MAY_BE_CONV
            decision = decisions.setdefault(module, Decision([], reason))
            decision.use = use
            if use.modes and module not in run.consumers and _has_options(module):
                decision.reason = decision.reason or RAN_ALONE
        if use.functions:  # other convolutions in its forward
            merge_texts(run.functions, use.computed)
    order = {module: index for index, module in enumerate(model.modules())}
    return Placement(dict(sorted(decisions.items(), key=lambda item: order[item[0]])), run.pointwise, run.functions)


def decide(consumers: list[nn.Module | str]) -> Decision:
    """Decide for a convolution from the consumers of its output.

    Only norms may consume it: norm modules, or calls of :data:`NORM_FUNCTIONS`. Any other function (``add``, ``cat``)
    keeps the convolution plain.
    """
    if not consumers:
        return Decision([], f'no norm follows: {LEAVES}', ran=True)
    norms = [consumer for consumer in consumers if isinstance(consumer, nn.Module)]
    others = [consumer for consumer in consumers if isinstance(consumer, str) and consumer not in NORM_FUNCTIONS]
    if others:
        return Decision([], f'{"not only norms follow" if norms else "no norm follows"}: {", ".join(others)}', ran=True)
    return Decision(norms, LAYER_NORM_REASON if any(isinstance(norm, nn.LayerNorm) for norm in norms) else '', ran=True)


def _has_options(module: nn.Module) -> bool:
    """Return whether the network may call ``module`` in another way than with one input."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    return len(parameters) != 1 or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD


def apply_globs_(decisions: dict[nn.Module, Decision], model: nn.Module, options: Options) -> None:
    """Apply the options ``include`` and ``exclude``; raise :class:`WSError` if a glob matches no convolution."""
    included = _matching(decisions, model, 'include', options.include)
    for conv, decision in decisions.items() if included else ():
        if conv not in included:
            decision.reason = f'not in include={list(options.include)}'
        elif decision.reason == LAYER_NORM_REASON:
            decision.reason = ''
    for conv, glob in _matching(decisions, model, 'exclude', options.exclude).items():
        decisions[conv].reason = f'excluded by {glob!r}'


def _matching(
        convs: Collection[nn.Module], model: nn.Module, option: str, globs: Collection[str]) -> dict[nn.Module, str]:
    """Return the convolutions with a name that matches one of ``globs``, and the last such glob."""
    named = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if module in convs]
    found: dict[nn.Module, str] = {}
    for glob in globs:
        matching = [conv for name, conv in named if fnmatchcase(name, glob)]
        if not matching:
            raise WSError(f'ws option {option}: {glob!r} matches no convolution of {type(model).__name__}; '
                          + near_matches(glob, [name for name, _ in named]))
        found.update(dict.fromkeys(matching, glob))
    return found

"""Dry run of a copy of any network: on the meta device, which needs no data and does no arithmetic, or on inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.guessed_calls import guessed_calls, has_filters
from mmws.conversion.output_recorder import Consumers, OutputRecorder
from mmws.conversion.replica import copy_for_run, copy_to_meta
from mmws.conversion.weight_use import WeightUse, stand_in
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception
from mmws.ops.torch_compat import tree_leaves

__all__ = ['DryRun', 'dry_run', 'run_in_parts']

MODES = (True, False)  # training, evaluation


@dataclass
class DryRun:
    """What a dry run showed.

    Attributes:
        consumers: the consumers of each convolution that ran. If a part of the network ran alone, a convolution whose
            output leaves it is omitted: its consumers are unknown.
        pointwise: the norms whose input has a single value per channel and image.
        uses: how each module with filters uses its weight, but for classes whose forward is known.
        functions: see :class:`mmws.conversion.output_recorder.OutputRecorder`.
    """

    consumers: Consumers = field(default_factory=dict)
    pointwise: set[nn.Module] = field(default_factory=set)
    uses: dict[nn.Module, WeightUse] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)


def dry_run(model: nn.Module, inputs: Any = None) -> DryRun:
    """Run a copy of ``model`` in training mode and in evaluation mode, on the meta device and on ``inputs``, if given.

    On the meta device, a detector or segmenter of a toolkit runs through ``extract_feat``, and its heads run on the
    features. Any other network runs on an image. If the whole network does not run, its parts run, each on inputs with
    the channels of its first convolution. What ran on ``inputs`` counts as it ran there.

    Args:
        inputs: the argument of the network: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Raises:
        WSError: if the network does not run on ``inputs``.
    """
    def run_on_meta(replica: nn.Module) -> tuple[Consumers, dict[str, str]]:
        with torch.device('meta'):
            return _run_and_record(replica)

    found = _run_copy(model, copy_to_meta, run_on_meta)
    if inputs is not None:
        given = _run_on_inputs(model, inputs)
        found.consumers.update(given.consumers)
        found.functions.update(given.functions)
        found.pointwise |= given.pointwise
        found.uses.update({module: use for module, use in given.uses.items() if use.ran})
    return found


def _run_on_inputs(model: nn.Module, inputs: Any) -> DryRun:
    args = () if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs, )
    kwargs = inputs if isinstance(inputs, Mapping) else {}
    errors: list[Exception] = []

    def run(replica: nn.Module) -> tuple[Consumers, dict[str, str]]:
        try:
            with OutputRecorder(replica) as recorder, recorder.attempt(), torch.no_grad():
                replica(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs)))
        except FOREIGN_ERRORS as error:
            errors.append(error)
            raise
        return recorder.consumers, recorder.functions

    devices = {leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_cuda}
    with torch.random.fork_rng(devices):
        found = _run_copy(model, copy_for_run, run)
    if len(errors) == len(MODES):
        raise WSError(f'convert_: the network does not run on the inputs: {format_exception(errors[-1])}; expected the '
                      f'arguments of {type(model).__name__}.forward as a tuple, or as a mapping of keyword arguments')
    return found


def _run_copy(model: nn.Module, make: Callable[[nn.Module, set[nn.Module]], nn.Module],
              run: Callable[[nn.Module], tuple[Consumers, dict[str, str]]]) -> DryRun:
    found = DryRun()
    pointwise: set[nn.Module] = set()
    try:
        replica = make(model, pointwise)
    except FOREIGN_ERRORS:
        return found
    modules, originals = list(replica.modules()), list(model.modules())
    if len(modules) != len(originals):  # a module copies itself in its own way
        return found
    original: dict[Any, Any] = dict(zip(modules, originals))
    for training in MODES:
        replica.train(training)  # not chained: a toolkit's override may return None
        try:
            consumers, functions = run(replica)
        except FOREIGN_ERRORS:
            continue
        found.functions.update(functions)
        for conv, seen in consumers.items():
            known = found.consumers.setdefault(original[conv], [])
            known += [consumer for other in seen if (consumer := original.get(other, other)) not in known]
    found.pointwise = {original[norm] for norm in pointwise}
    found.uses = {original[module]: use for module in modules if (use := _use(module)) is not None}
    return found


def _use(module: nn.Module) -> WeightUse | None:
    """Return how ``module`` uses its weight. It runs alone if it did not run in the network."""
    found = stand_in(module)
    if found is None:
        return None
    if not found[1].ran and found[0].is_meta:
        with OutputRecorder(module), torch.device('meta'), torch.no_grad():
            for attempt in guessed_calls(module, None):
                with suppress(*FOREIGN_ERRORS):
                    attempt()
                    break
    return found[1]


def run_in_parts(model: nn.Module) -> Consumers:
    """Run ``model`` itself on empty tensors, in parts if need be, and return the consumers as :func:`dry_run` does."""
    return _run_and_record(model)[0]


def _run_and_record(model: nn.Module) -> tuple[Consumers, dict[str, str]]:
    with OutputRecorder(model) as recorder, torch.no_grad():
        complete, _ = _run(model, recorder, None)
    consumers = {conv: consumers for conv, consumers in recorder.consumers.items() if consumers or conv in complete}
    return consumers, recorder.functions


def _run(module: nn.Module, recorder: OutputRecorder, features: Any) -> tuple[set[nn.Module], Any]:
    """Run ``module``, then each child with convolutions that did not run.

    Returns:
        The convolutions with a complete record: they ran with the whole ``module``, or in a head of a detector. And the
        output, which is the input of the modules after it.
    """
    convs = {inner for inner in module.modules() if has_filters(inner)}
    if module in convs or (module is not recorder.model and convs <= recorder.ran | recorder.consumers.keys()):
        return set(), features
    complete: set[nn.Module] = set()
    for attempt in guessed_calls(module, features):
        try:
            with recorder.attempt():
                features = attempt()
            complete = convs & recorder.consumers.keys()
            break
        except FOREIGN_ERRORS:
            pass
    for child in module.children():
        complete_in_child, features = _run(child, recorder, features)
        if hasattr(module, 'extract_feat') or hasattr(child, 'extract_feat'):
            complete |= complete_in_child
    return complete, features

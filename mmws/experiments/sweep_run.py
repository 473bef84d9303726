"""Real runs of a stock model for the sweep: what consumes each convolution, what is not finite. Used by `sweep.py`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import nn

from mmws.conversion.layer_types import is_conv
from mmws.conversion.output_recorder import Consumers, OutputRecorder, add_consumers
from mmws.conversion.run_in_parts import run_in_parts
from mmws.conversion.swap_convs import standardizes_itself
from mmws.errors import FOREIGN_ERRORS, format_exception
from mmws.experiments.demo_samples import demo_batches
from mmws.experiments.sweep_autograd import AutogradConsumers
from mmws.experiments.sweep_models import SIZES
from mmws.ops.torch_compat import tree_leaves

__all__ = ['NOT_FINITE', 'Runs', 'convs_of', 'has_losses', 'non_finite', 'run_losses', 'run_on_samples']

NOT_FINITE = 'an output is not finite'


@dataclass
class Runs:
    """What runs of a model show."""

    consumers: Consumers = field(default_factory=dict)  # of runs until every convolution ran
    compared: Consumers = field(default_factory=dict)  # of a run of evaluation after that
    autograd: Consumers = field(default_factory=dict)  # in the graphs of the losses
    errors: list[str] = field(default_factory=list)  # what was not finite
    backward: bool = False  # a loss ran backward


def run_on_samples(model: nn.Module, structure: nn.Module, scope: str, num_classes: int, whole: bool) -> Runs:
    """Run the model. The run of evaluation after that is left out if no convolution is standardized.

    ``structure`` is the stock model on the meta device, which tells the sizes that it can process.
    """
    runs = _run_modes(model, structure, scope, num_classes, whole, ('loss', 'tensor', 'predict'))
    volumes = any(isinstance(conv, nn.Conv3d) for conv in convs_of(model))  # run_in_parts would take minutes
    if not volumes and not runs.consumers.keys() >= set(convs_of(model)):
        runs.consumers = {**run_in_parts(model), **runs.consumers}  # single parts reach the remaining convolutions
    return runs


def run_losses(model: nn.Module, structure: nn.Module, scope: str, num_classes: int) -> Runs:
    """Do as :func:`run_on_samples` with the losses only."""
    return _run_modes(model, structure, scope, num_classes, True, ('loss',))


def has_losses(model: nn.Module) -> bool:
    """Return whether the model or a part has losses; mmpretrain's models without a head do not."""
    return any(map(_has_loss, _parts(model)))


def _has_loss(part: nn.Module) -> bool:
    return bool(getattr(part, 'with_head', True))


def _parts(model: nn.Module) -> list[nn.Module]:
    return [part for part in (model, *model.children()) if hasattr(part, 'data_preprocessor')]


def _run_modes(model: nn.Module, structure: nn.Module, scope: str, num_classes: int, whole: bool,
               modes: Sequence[str]) -> Runs:
    runs = Runs()
    ran: set[tuple[nn.Module, str]] = set()  # parts and modes
    sizes: list[tuple[int, int]] = []  # that the network can process, known after the first failure
    failed: dict[tuple[nn.Module, str, int], str] = {}  # the error by part, mode and number of the batch
    hopeless: set[tuple[nn.Module, str, int]] = set()  # for lack of an operator of the CPU, or whatever the size is
    fitting: dict[nn.Module, tuple[int, int]] = {}  # the first size that a part can process
    evaluated = whole and any(map(standardizes_itself, convs_of(model)))
    for size, part, mode in product(SIZES, _parts(model), modes):
        complete = runs.consumers.keys() >= set(convs_of(part))
        again = evaluated and mode == 'predict' and fitting.get(part, size) == size
        no_loss = mode == 'loss' and not _has_loss(part)
        trains = mode == 'loss' and whole
        if no_loss or (complete and ((part, mode) in ran or not (again or trains))):
            continue
        with suppress(*FOREIGN_ERRORS):
            for number, (inputs, samples) in enumerate(demo_batches(part, scope, size, num_classes)):
                if sizes and size not in sizes:
                    break
                batch = part, mode, number
                if batch in hopeless:
                    continue
                try:
                    seen = _run(model, part, mode, inputs, samples, runs if whole else None)
                except (*FOREIGN_ERRORS, OSError) as error:  # some read files
                    sizes = sizes or ([*SIZES] if ran else _sizes_from_first_fit(structure))
                    text = format_exception(error)
                    if 'cpu' in text.lower() or (part in fitting and failed.get(batch) == text):
                        hopeless.add(batch)
                    failed[batch] = text
                    continue
                found = runs.compared if complete else runs.consumers
                add_consumers(found, seen)
                ran.add((part, mode))
                fitting.setdefault(part, size)
                break
    return runs


def _sizes_from_first_fit(structure: nn.Module) -> list[tuple[int, int]]:
    """Return the sizes from the first one that the features can be computed for; all if it is not known."""
    replica: Any = copy.deepcopy(structure)
    for index, size in enumerate(SIZES):
        with suppress(*FOREIGN_ERRORS), torch.no_grad():
            replica.extract_feat(torch.empty(1, 3, *size, device='meta'))
            return list(SIZES[index:])
    return list(SIZES)


def _run(model: nn.Module, part: nn.Module, mode: str, inputs: Any, samples: Any, runs: Runs | None) -> Consumers:
    """Run ``part``, and return what the run showed.

    With ``runs``, the losses also run backward, and what is not finite is added to its errors.
    """
    with_gradients = mode == 'loss' and runs is not None
    graph = AutogradConsumers(model)
    part.train(mode == 'loss')
    with OutputRecorder(model) as recorder, torch.set_grad_enabled(with_gradients), graph:
        output = part(inputs, samples, mode=mode)
        if mode == 'tensor' and part is model:
            recorder.record_output(output)
    if with_gradients and runs is not None:  # the other outputs may have -inf for what is masked
        graph.add(output)
        add_consumers(runs.autograd, graph.consumers)
        try:
            runs.errors += non_finite(part, output)
            runs.backward = True
        except FOREIGN_ERRORS as error:
            runs.errors.append(f'the backward pass failed: {format_exception(error)}')
    return recorder.consumers


def non_finite(model: nn.Module, output: Any) -> list[str]:
    """Compute the gradients of an output; return what of both is infinite or NaN."""
    values = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    found = [NOT_FINITE] if not all(value.isfinite().all() for value in values) else []
    total = sum(value.float().mean() for value in values if value.requires_grad)
    if isinstance(total, torch.Tensor):
        torch.autograd.backward(total)
        found += [f'the gradient of {name} is not finite' for name, parameter in model.named_parameters()
                  if parameter.grad is not None and parameter.numel()
                  and not all(map(torch.isfinite, torch.aminmax(parameter.grad)))][:3]
        model.zero_grad()
    return found


def convs_of(model: nn.Module) -> list[nn.Module]:
    """Return the convolutions of a model."""
    return [module for module in model.modules() if is_conv(module)]

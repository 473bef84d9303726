"""Dry run of a copy of any network: on the meta device, which needs no data and does no arithmetic, or on inputs."""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.guessed_calls import guessed_calls
from mmws.conversion.layer_types import has_conv_sized_weight, is_conv, is_norm
from mmws.conversion.output_recorder import Consumers, OutputRecorder, add_consumers
from mmws.conversion.replica import copy_for_run, copy_to_meta
from mmws.conversion.run_in_parts import run_and_record
from mmws.conversion.weight_recorder import CopiesByWeight
from mmws.conversion.weight_use import WeightUse, merge_texts, stand_in
from mmws.errors import WSError, format_exception
from mmws.ops.torch_compat import tree_leaves, without_compiler

__all__ = ['DryRun', 'dry_run']

MODES = (True, False)  # training, evaluation
PASSES = ((True, True), (True, False), (False, False))  # mode, gradients


@dataclass
class DryRun:
    """What a dry run showed.

    Attributes:
        consumers: the consumers of each convolution that ran. If a part of the network ran alone, a convolution whose
            output leaves it is omitted: its consumers are unknown.
        pointwise: the norms whose input has a single value per channel and image.
        uses: how each module with filters uses its weight, but for classes whose forward is known.
        functions: see :class:`mmws.conversion.weight_recorder.WeightRecorder`.
        errors: by the mode, True for training: the exception with which the run of the whole network ended.
        whole: the modes in which the network ran as a whole on a guessed input.
    """

    consumers: Consumers = field(default_factory=dict)
    pointwise: set[nn.Module] = field(default_factory=set)
    uses: dict[nn.Module, WeightUse] = field(default_factory=dict)
    functions: dict[str, list[str]] = field(default_factory=dict)
    errors: dict[bool, str] = field(default_factory=dict)
    whole: set[bool] = field(default_factory=set)

    def add(self, other: DryRun) -> None:
        """Add what another dry run of the same network showed."""
        add_consumers(self.consumers, other.consumers)
        merge_texts(self.functions, other.functions)
        for module, use in other.uses.items():
            self.uses.setdefault(module, use).add(use)
        self.pointwise |= other.pointwise


def dry_run(model: nn.Module, inputs: Any = None) -> DryRun:
    """Run a copy of ``model`` in training mode and in evaluation mode, on the meta device and on ``inputs``, if given.

    On the meta device, a detector or segmenter of a toolkit runs through ``extract_feat``, and its heads run on the
    features. Any other network runs on an image. If the whole network does not run, its parts run, each on inputs with
    the channels of its first convolution. A module that may be a convolution of an unknown class also runs alone.

    Args:
        inputs: the argument of the network if it is a tensor; else a tuple or list of its arguments, or a mapping of
            keyword arguments. A batch of a toolkit's data loader passes through the ``data_preprocessor`` first.

    Raises:
        WSError: if the network cannot be copied to run on ``inputs``, or runs on them in neither mode. If it runs in
            one mode, a warning names the other.
    """
    found, replica = DryRun(), None
    pointwise: set[nn.Module] = set()
    with warnings.catch_warnings(), _same_random_numbers():
        warnings.simplefilter('ignore')  # guessed inputs cause warnings that mean nothing to the user
        with suppress(Exception):  # the network is foreign code and may raise anything
            replica = copy_to_meta(model, pointwise)
        if replica is not None:
            found = _run_copy(model, replica, pointwise, _run_on_meta)
    if inputs is None and len(found.whole) == 1:
        _warn_of_failed_mode(False in found.whole, 'an image', '')
    if inputs is None and not found.whole and all(any(map(kind, model.modules())) for kind in (is_norm, is_conv)):
        warnings.warn('convert_: the network does not run on an image. Parts of it ran alone, and the order of its '
                      'modules decides for the rest; the report names it. Give inputs: convert_(net, inputs=...)',
                      stacklevel=4)
    if inputs is not None:
        found.add(_run_on_inputs(model, inputs))
    return found


@contextmanager
def _same_random_numbers(devices: Collection[torch.device] = ()) -> Iterator[None]:
    """Context that does not advance the random generators of torch, Python and numpy: no later draw changes."""
    numpy, state = sys.modules.get('numpy'), random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(numpy_state)


def _run_on_meta(replica: nn.Module, copies: CopiesByWeight, training: bool) -> OutputRecorder:
    with torch.device('meta'):
        return run_and_record(replica, copies, training)


def _run_on_inputs(model: nn.Module, inputs: Any) -> DryRun:
    args = () if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs, )
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]

    def run(replica: nn.Module, copies: CopiesByWeight, training: bool) -> OutputRecorder:
        copied = copy.deepcopy((args, kwargs), {id(tensor): tensor.detach().clone() for tensor in tensors})
        with OutputRecorder(replica, copies) as recorder, recorder.attempt():
            replica.train(training)
            recorder.record_output(replica(*copied[0], **_preprocessed(replica, copied[1])))
        return recorder

    pointwise: set[nn.Module] = set()
    try:
        replica = copy_for_run(model, pointwise)
    except Exception as error:  # the network is foreign code and may raise anything
        raise WSError('convert_: the network cannot be copied to run on the inputs: '
                      f'{format_exception(error)}') from None
    with _same_random_numbers({tensor.device for tensor in tensors if tensor.is_cuda}):
        found = _run_copy(model, replica, pointwise, run)
    if len(found.errors) == len(MODES):
        raise WSError(f'convert_: the network does not run on the inputs: {found.errors[MODES[-1]]}; expected the '
                      f'arguments of {type(model).__name__}.forward as a tuple, or as a mapping of keyword arguments')
    for training, message in found.errors.items():
        _warn_of_failed_mode(training, 'the inputs', f': {message}', stacklevel=6)
    return found


def _warn_of_failed_mode(training: bool, on: str, why: str, stacklevel: int = 5) -> None:
    """Warn the caller of convert_ that the network does not run in training mode, or in evaluation mode."""
    failed, ran = ('training', 'evaluation') if training else ('evaluation', 'training')
    warnings.warn(f'convert_: the network does not run on {on} in {failed} mode{why}; {ran} mode alone shows what '
                  'follows the convolutions. Give inputs for both modes (with targets, for example), or exclude the '
                  f'convolutions whose output {failed} mode uses without a norm', stacklevel=stacklevel)


def _preprocessed(replica: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a toolkit's model for a batch of its data loader, as its runner does."""
    is_batch = arguments.keys() == {'inputs', 'data_samples'} and arguments['data_samples'] is not None
    if not is_batch or not callable(getattr(replica, 'data_preprocessor', None)):
        return arguments
    batch = replica.data_preprocessor(arguments, replica.training)
    return {**batch, 'mode': 'loss' if replica.training else 'predict'}


def _run_copy(model: nn.Module, replica: nn.Module, pointwise: set[nn.Module],
              run: Callable[[nn.Module, CopiesByWeight, bool], OutputRecorder]) -> DryRun:
    """Run a copy of ``model`` in both modes; ``pointwise`` gets its norms of that kind.

    In training mode it runs with gradients, and without where that can make a difference: for convolutions of unknown
    classes, and if it does not run on ``inputs`` with gradients.
    """
    found, ran = DryRun(), set()
    modules, own = list(replica.modules()), list(model.modules())
    original: dict[Any, Any] = dict(zip(modules, own))
    copies = {id(before.weight): [after] for after, before in original.items() if has_conv_sized_weight(before)}
    for training, gradients in PASSES:
        if training and not gradients and training not in found.errors and not any(map(stand_in, modules)):
            continue
        try:
            with torch.set_grad_enabled(gradients), without_compiler():
                recorder = run(replica, copies, training)
        except Exception as error:  # the network is foreign code and may raise anything
            found.errors.setdefault(training, format_exception(error))
            continue
        ran.add(training)
        found.whole |= {training} if recorder.ran_whole else set()
        found.add(DryRun(functions=recorder.weights.functions, consumers={
            original[conv]: [original.get(consumer, consumer) for consumer in consumers]
            for conv, consumers in recorder.consumers.items() if conv in original}))  # the run may create layers
    found.errors = {training: message for training, message in found.errors.items() if training not in ran}
    found.pointwise = {original[norm] for norm in pointwise}
    found.uses = {original[module]: use for module in modules if (use := _run_alone(module, copies)) is not None}
    return found


def _run_alone(module: nn.Module, copies: CopiesByWeight) -> WeightUse | None:
    """Return how ``module`` uses its weight. On the meta device it runs alone too, in both modes, with gradients."""
    found = stand_in(module)
    if found is None:
        return None
    for training in MODES if found.weight.is_meta else ():
        with OutputRecorder(module, copies) as recorder, torch.device('meta'), torch.set_grad_enabled(training):
            for attempt in guessed_calls(module, None, gradients=training):
                try:
                    module.train(training)
                    with recorder.attempt():
                        attempt()
                    break
                except Exception as error:  # the network is foreign code and may raise anything
                    found.use.error = found.use.error or format_exception(error)
    return found.use

"""Run of any network on guessed inputs: as a whole, or in parts if need be."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmws.conversion.guessed_calls import guessed_calls, is_toolkit_model
from mmws.conversion.layer_types import is_conv, may_be_conv
from mmws.conversion.output_recorder import Consumers, OutputRecorder
from mmws.conversion.weight_recorder import CopiesByWeight

__all__ = ['run_and_record', 'run_in_parts']


def run_in_parts(model: nn.Module) -> Consumers:
    """Run ``model`` itself, not a copy, on zeros, and return the consumers of the convolutions that ran.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> run_in_parts(net) == {net[0]: [net[1]]}
        True
    """
    with torch.no_grad():
        return run_and_record(model, None, None).consumers


def run_and_record(model: nn.Module, copies: CopiesByWeight | None, training: bool | None) -> OutputRecorder:
    """Run ``model`` on guessed inputs, on the default device. If it does not run as a whole, its parts run.

    A convolution whose output leaves a part that ran alone is omitted: its consumers are unknown.

    Args:
        model: the network.
        copies: see :class:`mmws.conversion.weight_recorder.WeightRecorder`.
        training: the mode to run in; None for the one that the network is in. What ``train()`` reads is recorded too.
    """
    unknown: set[nn.Module] = set()
    with OutputRecorder(model, copies) as recorder:
        if training is not None:
            model.train(training)  # not chained: a toolkit's override may return None
        complete, _ = _run(model, recorder, None, unknown)
    recorder.ran_whole = recorder.ran_whole or any(map(is_toolkit_model, model.modules()))
    recorder.consumers = {conv: consumers for conv, consumers in recorder.consumers.items()
                          if (consumers or conv in complete) and conv not in unknown}
    return recorder


def _run(module: nn.Module, recorder: OutputRecorder, features: Any, unknown: set[nn.Module],
         of_toolkit: bool = False) -> tuple[set[nn.Module], Any]:
    """Run ``module``, then each child with convolutions that did not run.

    ``unknown`` gets the convolutions whose output leaves a part that ran alone. With ``of_toolkit`` the parent has an
    ``extract_feat``: the features of a part go to the next one.

    Returns:
        The convolutions whose consumers are all known, and the output of ``module``.
    """
    convs = {inner for inner in module.modules() if may_be_conv(inner)}
    if module is not recorder.model and (is_conv(module) or convs <= recorder.ran | recorder.consumers.keys()):
        return set(), features
    complete: set[nn.Module] = set()
    for attempt in guessed_calls(module, features):
        try:
            with recorder.attempt():
                features = attempt()
            recorder.ran_whole |= module is recorder.model
            if module is not recorder.model and not of_toolkit:
                unknown |= recorder.producers_of(features)
            elif not is_toolkit_model(module) and not of_toolkit:
                recorder.record_output(features)
            complete = convs & recorder.consumers.keys()
            break
        except Exception:  # the network is foreign code and may raise anything
            pass
    for child in module.children():
        of_toolkit = is_toolkit_model(module) or is_toolkit_model(child)
        complete_in_child, features = _run(child, recorder, features, unknown, of_toolkit)
        if of_toolkit:
            complete |= complete_in_child
    return complete, features

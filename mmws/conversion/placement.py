"""Which convolutions feed a normalization layer, on any nn.Module. Imports torch alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mmws.conversion.meta_run import run_copy
from mmws.conversion.module_tree import LAYER_NORM, Verdict, is_conv, read_tree
from mmws.conversion.norm_types import is_layer_norm
from mmws.conversion.output_recorder import NORM_FUNCTIONS

__all__ = ['LAYER_NORM', 'Placement', 'Verdict', 'find_placement', 'is_conv', 'judge']


@dataclass
class Placement:
    """Where Weight Standardization belongs in a model.

    Attributes:
        convs: the verdict on each convolution, in the order of ``model.modules()``.
        pointwise: the norms that were seen to take a single value per channel and image.
    """

    convs: dict[nn.Module, Verdict]
    pointwise: set[nn.Module]


def find_placement(model: nn.Module) -> Placement:
    """Judge each convolution of ``model``: do normalization layers take its output, and nothing else?

    A copy of the network runs on the meta device (:func:`mmws.conversion.meta_run.run_copy`), which shows what takes
    each output. Where the network cannot be run, the module tree decides
    (:func:`mmws.conversion.module_tree.read_tree`).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> [verdict.reason for verdict in find_placement(net).convs.values()]
        ['', 'no norm takes its output: it leaves the network']
    """
    ran = run_copy(model)
    judged = {conv: judge(consumers) for conv, consumers in ran.consumers.items()}
    return Placement(read_tree(model) | judged, ran.pointwise)


def judge(consumers: list[nn.Module | str]) -> Verdict:
    """Turn what took a convolution's output in a run into a verdict."""
    norms = [consumer for consumer in consumers if isinstance(consumer, nn.Module)]
    others = [consumer for consumer in consumers if isinstance(consumer, str) and consumer not in NORM_FUNCTIONS]
    if not consumers:
        return Verdict([], 'no norm takes its output: it leaves the network', ran=True)
    if others:
        who = 'not only norms take' if norms else 'no norm takes'
        return Verdict([], f'{who} its output: {", ".join(others)}', ran=True)
    return Verdict(norms, LAYER_NORM if any(map(is_layer_norm, norms)) else '', ran=True)

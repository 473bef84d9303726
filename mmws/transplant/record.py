"""Record of what a BatchNorm network computes on a few images: the target of a transplant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmws.transplant.norms import affine_of
from mmws.transplant.sampling import Moments, at_positions, moments, random_positions

__all__ = ['Call', 'Record', 'evaluating', 'recording']


@dataclass
class Call:
    """One call of a BatchNorm: the shape of its input, samples and moments of its output."""

    shape: torch.Size
    positions: Tensor  # (N, positions), flat indices in a map
    values: Tensor  # (N * positions, C)
    moments: Moments


@dataclass
class Record:
    """Calls of the BatchNorms, and the shapes of the inputs of the convolutions, in order."""

    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)
    shapes: dict[nn.Module, list[torch.Size]] = field(default_factory=dict)


@contextmanager
def recording(norms: list[Any], convs: list[nn.Module], samples: int, seed: int) -> Iterator[Record]:
    """Context that records the calls of BatchNorms in eval mode and of convolutions; ``seed``: of the positions."""
    record, generator = Record(), torch.Generator().manual_seed(seed)
    hooks = [norm.register_forward_pre_hook(partial(_record_norm, record, samples, generator)) for norm in norms]
    hooks += [conv.register_forward_pre_hook(partial(_record_conv, record)) for conv in convs]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context without gradients in which ``network`` is in eval mode; each module gets its mode back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _record_norm(record: Record, samples: int, generator: torch.Generator, norm: nn.Module, args: Any) -> None:
    x, (scale, shift) = args[0], affine_of(norm)
    positions = random_positions(x, samples, generator)
    record.calls.setdefault(norm, []).append(Call(
        x.shape, positions, at_positions(x, positions) * scale + shift, moments(x).scaled(scale, shift)))


def _record_conv(record: Record, conv: nn.Module, args: Any) -> None:
    record.shapes.setdefault(conv, []).append(args[0].shape)

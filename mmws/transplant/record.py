"""Record of what a BatchNorm network computes on a few images: the target of a transplant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, List

import torch
from torch import Tensor, nn

from mmws.errors import WSError
from mmws.transplant.norms import affine_of
from mmws.transplant.sampling import Moments, at_positions, moments, random_positions

__all__ = ['Call', 'Calls', 'evaluating', 'first_input', 'recording', 'without_autocast']


@dataclass
class Call:
    """One call of a BatchNorm, which had an input.

    Attributes:
        shape: of its input.
        conv_input: shape of the input of the convolution before it; None if another layer gave its input.
        positions: flat indices in a feature map, (N, positions).
        values: of its output there, (N * positions, C).
        moments: of its output.
    """

    shape: torch.Size
    conv_input: torch.Size | None
    positions: Tensor
    values: Tensor
    moments: Moments


Calls = Dict[nn.Module, List[Call]]


@contextmanager
def recording(norms: Mapping[Any, str], conv_of: Mapping[nn.Module, nn.Module], samples: int,
              seed: int) -> Iterator[Calls]:
    """Context that records the calls of BatchNorms in eval mode.

    Args:
        norms: with their names.
        conv_of: the convolution before a norm.
        samples: the number of positions per call.
        seed: of the positions.

    Raises:
        WSError: if the input of a norm is not finite.
    """
    calls: Calls = {}
    generator = torch.Generator('cpu').manual_seed(seed)
    latest: dict[nn.Module, tuple[torch.Size, Tensor]] = {}  # of each convolution: shape of its input, its output

    def note_conv(conv: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        latest[conv] = first_input(args, kwargs).shape, output

    def note_norm(name: str, norm: nn.Module, args: Any, kwargs: Any) -> None:
        x = first_input(args, kwargs)
        shape, output = latest.pop(conv_of.get(norm), (None, None))  # type: ignore[arg-type]
        same = output is x or (output is not None and output.shape == x.shape and torch.equal(output, x))
        if x.numel():
            with without_autocast(x):
                calls.setdefault(norm, []).append(_call(name, norm, x, shape if same else None, samples, generator))

    hooks = [norm.register_forward_pre_hook(partial(note_norm, name), with_kwargs=True) for norm, name in norms.items()]
    hooks += [conv.register_forward_hook(note_conv, with_kwargs=True) for conv in set(conv_of.values())]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _call(name: str, norm: Any, x: Tensor, conv_input: torch.Size | None, samples: int,
          generator: torch.Generator) -> Call:
    (scale, shift), found = affine_of(norm), moments(x)
    if not torch.isfinite(found.variance).all():
        raise WSError(f'transplant_: the input of {name} is NaN or infinite; check the images and the weights')
    positions = random_positions(x, samples, generator)
    return Call(x.shape, conv_input, positions, at_positions(x, positions) * scale + shift, found.scaled(scale, shift))


def first_input(args: Any, kwargs: Any) -> Tensor:
    """Return the input of a layer from the arguments of its call."""
    found: Tensor = args[0] if args else next(iter(kwargs.values()))
    return found


def without_autocast(x: Tensor) -> Any:
    """Return a context without autocast, for sums and regressions in float32."""
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context without gradients in which ``network`` is in eval mode; modes and ``requires_grad`` are put back."""
    modes = {module: module.training for module in network.modules()}
    trained = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in trained.items():  # a toolkit's eval() can freeze stages again
            parameter.requires_grad_(requires_grad)

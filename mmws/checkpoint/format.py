"""What a foreign format says of itself, and how its tensors are checked against the network they are for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmws.errors import WSError, near_matches

__all__ = ['BGR_CAFFE', 'RGB_TORCHVISION', 'Format', 'LeftOver', 'rename']

Shapes = dict[str, tuple[int, ...]]

RGB_TORCHVISION = {'channels': 'RGB', 'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}
BGR_CAFFE = {'channels': 'BGR', 'mean': [102.9801, 115.9465, 122.7717], 'std': [1.0, 1.0, 1.0]}


class LeftOver(str):
    """Why a tensor has no place in the network."""


@dataclass(frozen=True)
class Format:
    """A naming of tensors.

    Attributes:
        name: what it is, for people.
        matches: whether keys are named that way.
        rename: the toolkit's name for a key, why there is none, or None where the key is not known.
        shapes: from renamed tensors, the network's own name and the shapes it has, by the toolkit's names.
        input: the order of channels, and mean and std on a scale of 0 to 255, that the weights were trained on.
    """

    name: str
    matches: Callable[[Collection[str]], bool]
    rename: Callable[[str], str | LeftOver | None]
    shapes: Callable[[Mapping[str, Tensor]], tuple[str, Shapes]]
    input: Mapping[str, Any] = field(default_factory=lambda: RGB_TORCHVISION)


def rename(tensors: Mapping[str, Tensor], style: Format) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Give tensors the toolkit's names and account for each.

    Returns:
        The renamed tensors, the tensors left over with the reason, the name of the network.

    Raises:
        WSError: naming key and shapes, if one is unknown, missing or misshapen.
    """
    renamed: dict[str, Tensor] = {}
    left_over, came_from = {}, dict[str, str]()
    for key, tensor in tensors.items():
        name = style.rename(key)
        if isinstance(name, LeftOver):
            left_over[key] = str(name)
        else:
            name = name or key
            if name in renamed:
                raise WSError(f'{came_from[name]} and {key} are both {name}')
            renamed[name], came_from[name] = tensor, key
    network, shapes = style.shapes(renamed)
    _check(renamed, shapes, came_from, network)
    return renamed, left_over, network


def _check(renamed: Mapping[str, Tensor], shapes: Shapes, came_from: Mapping[str, str], network: str) -> None:
    for name, shape in shapes.items():
        if name not in renamed:
            raise WSError(f'{network} needs {name} of shape {shape}, which is missing')
        got = tuple(renamed[name].shape)
        if got != shape:
            raise WSError(f'{came_from[name]} has shape {got}, but {name} of {network} has {shape}')
    for name, tensor in renamed.items():
        if name.endswith(('.weight', '.bias')) and not tensor.is_floating_point():
            raise WSError(f'{came_from[name]} is of {tensor.dtype}, where weights are floating point numbers')
        if name not in shapes:
            raise WSError(f'{came_from[name]} of shape {tuple(tensor.shape)} has no place in {network}: '
                          f'{near_matches(name, shapes)}')

"""Interface of a foreign checkpoint format, and the check of its tensors against the target network.

To read another format, add a file to this package that defines one :class:`Format`, and list it in ``FORMATS`` of
convert.py. A format that mmws cannot compute goes into incompatible.py instead.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Dict, Tuple

from torch import Tensor

from mmws.errors import WSError, near_matches

__all__ = ['BGR_CAFFE', 'RGB_TORCHVISION', 'Format', 'LeftOver', 'Shapes', 'conv_norm_shapes', 'rename_tensors']

Shapes = Dict[str, Tuple[int, ...]]
RGB_TORCHVISION = {'channels': 'RGB', 'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}
BGR_CAFFE = {'channels': 'BGR', 'mean': [102.9801, 115.9465, 122.7717], 'std': [1.0, 1.0, 1.0]}


class LeftOver(str):
    """Reason why the network does not use a tensor."""


@dataclass(frozen=True)
class Format:
    """Names and shapes of the tensors in a foreign checkpoint.

    Attributes:
        name: of the format, for messages.
        patterns: glob patterns of tensor names. A checkpoint has this format if each pattern matches one of its names.
        rename: returns the toolkit's name of a tensor, or a :class:`LeftOver`. The check refuses unknown names later.
        shapes: returns the name of the network and its shapes by the toolkit's names, from the renamed tensors.
        input: order of the channels, mean and std (scale 0 to 255) of the images that the network was trained on.
    """

    name: str
    patterns: tuple[str, ...]
    rename: Callable[[str], str | LeftOver]
    shapes: Callable[[Mapping[str, Tensor]], tuple[str, Shapes]]
    input: Mapping[str, Any] = field(default_factory=lambda: RGB_TORCHVISION)

    def matches(self, names: Collection[str]) -> bool:
        """Return whether a checkpoint with these names of tensors has this format."""
        return all(fnmatch.filter(names, pattern) for pattern in self.patterns)


def conv_norm_shapes(conv: str, norm: str, shape: tuple[int, ...]) -> Shapes:
    """Return the shapes of a convolution without bias and of its norm."""
    return {f'{conv}.weight': shape, f'{norm}.weight': shape[:1], f'{norm}.bias': shape[:1]}


def rename_tensors(tensors: Mapping[str, Tensor], file_format: Format) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Give each tensor the toolkit's name, and check that the network is complete.

    Returns:
        The renamed tensors, the reason for each tensor that is left over, the name of the network.

    Raises:
        WSError: if a tensor is unknown, missing, or has the wrong shape or dtype.
    """
    left_over: dict[str, str] = {}
    old_names: dict[str, str] = {}
    for key in tensors:
        name = file_format.rename(key)
        if name in old_names:
            raise WSError(f'{old_names[name]} and {key} both map to {name}')
        if isinstance(name, LeftOver):
            left_over[key] = str(name)
        else:
            old_names[name] = key
    renamed = {name: tensors[key] for name, key in old_names.items()}
    network, shapes = file_format.shapes(renamed)
    _check(renamed, shapes, old_names, network)
    return renamed, left_over, network


def _check(renamed: Mapping[str, Tensor], shapes: Shapes, old_names: Mapping[str, str], network: str) -> None:
    for name, shape in shapes.items():
        if name not in renamed:
            raise WSError(f'{network} needs {name} of shape {shape}, but it is missing')
    for name, tensor in renamed.items():
        key, shape = old_names[name], tuple(tensor.shape)
        if name not in shapes:
            raise WSError(f'{key} of shape {shape} does not belong to {network}: {near_matches(name, shapes)}')
        if shape != shapes[name]:
            raise WSError(f'{key} has shape {shape}, but {name} of {network} has {shapes[name]}')
        if name.endswith(('.weight', '.bias')) and not tensor.is_floating_point():
            raise WSError(f'{key} has dtype {tensor.dtype}, expected floating point numbers')

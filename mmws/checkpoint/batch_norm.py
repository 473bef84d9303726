"""Weights of BatchNorm networks, for a transplant: of torchvision, timm, mmpretrain, open-mmlab and the toolkits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmws.checkpoint.format import Shapes
from mmws.checkpoint.reader import read_checkpoint
from mmws.errors import WSError, without_prefix

__all__ = ['BatchNormWeights', 'read_batch_norm_weights']

BACKBONE = 'backbone.'
OPTIONAL = 'num_batches_tracked'  # not in files of torch before 0.4.1


@dataclass
class BatchNormWeights:
    """Weights with the names of the network, or of its backbone.

    Attributes:
        state_dict: the weights.
        part: ``''`` for the whole network, ``'backbone'`` for its backbone.
        left_over: names in the file that are not used.
        sha256: hash of the file.
        meta: notes of the toolkit in the file.
    """

    state_dict: dict[str, Tensor]
    part: str
    left_over: list[str]
    sha256: str
    meta: dict[str, Any]


def _deep_stem_of_timm(name: str) -> str:
    """Return the toolkits' name in a ResNet with three convolutions in the stem, which timm calls ``conv1``."""
    for old, new in (('conv1.', 'stem.'), ('bn1.', 'stem.7.')):
        if name.startswith(old):
            return new + name[len(old):]
    return name


RENAMES = {
    'the names of the toolkits and of torchvision': lambda name: name,
    'a model of mmpretrain': lambda name: without_prefix(name, BACKBONE),
    "timm's names in a TIMMBackbone": lambda name: f'timm_model.{name}',
    "timm's names with a deep stem": _deep_stem_of_timm,
}
"""Functions from a name in the file to the network's, by the source of the file."""


def read_batch_norm_weights(path: str | Path, shapes: Shapes) -> BatchNormWeights:
    """Read the weights of a network, or of its backbone, that was trained with BatchNorm.

    Args:
        path: file of torch or safetensors; nothing in it is executed.
        shapes: of the parameters and buffers of the BatchNorm network, by name.

    Raises:
        WSError: if the file is refused, has no BatchNorm statistics, or lacks weights of the backbone.

    Example:
        >>> read_batch_norm_weights('resnet50-0676ba61.pth', {})
        Traceback (most recent call last):
        mmws.errors.WSError: checkpoint resnet50-0676ba61.pth not found; the folder . has no .pth file
    """
    checkpoint = read_checkpoint(path)
    tensors = {without_prefix(name, 'module.'): tensor for name, tensor in checkpoint.tensors.items()}
    if not any(name.endswith('running_mean') for name in tensors):
        raise WSError(f'{path} has no BatchNorm statistics (running_mean): there is nothing to transplant. If it was '
                      'trained with GroupNorm and WS, load it as it is, with load_from or ws=dict(pretrained=...)')
    backbone = {name[len(BACKBONE):]: shape for name, shape in shapes.items() if name.startswith(BACKBONE)}
    tried: list[tuple[int, list[str]]] = []
    for part, expected in (('', shapes), ('backbone', backbone)):
        for rename in RENAMES.values() if expected else ():
            found = {rename(name): name for name in tensors}
            missing = [name for name in expected if name not in found and not name.endswith(OPTIONAL)]
            if not missing:
                state_dict = {name: tensors[found[name]] for name in expected if name in found}
                _check_shapes(path, state_dict, expected)
                used = {found[name] for name in state_dict}
                return BatchNormWeights(state_dict, part, [name for name in tensors if name not in used],
                                        checkpoint.sha256, checkpoint.meta)
            tried.append((len(missing), missing))
    missing = min(tried)[1]
    raise WSError(f'{path} does not fit the network: it has no {", ".join(missing[:3])}'
                  f'{f" and {len(missing) - 3} more" if len(missing) > 3 else ""}; known are the weights of the whole '
                  f'network, and of the backbone under {"; ".join(RENAMES)}')


def _check_shapes(path: str | Path, state_dict: Mapping[str, Tensor], expected: Shapes) -> None:
    for name, tensor in state_dict.items():
        if tuple(tensor.shape) != tuple(expected[name]):
            raise WSError(f'{path} does not fit the network: {name} has shape {tuple(tensor.shape)}, expected '
                          f'{tuple(expected[name])}')

"""Weights of BatchNorm networks, for a transplant: of torchvision, timm, mmpretrain, open-mmlab and the toolkits."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
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
        problem: why it is not of the whole network, if it has names of it; or ``''``.
        left_over: names in the file that are not used.
        sha256: hash of the file.
        meta: notes of the toolkit in the file.
    """

    state_dict: dict[str, Tensor]
    part: str
    problem: str
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
        WSError: if the file is refused, has no BatchNorm statistics, is of a converted network, or lacks weights of the
            backbone. A network with another number of classes is read as its backbone.

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
    converted = _conversion_of(checkpoint.meta)
    if converted:
        raise WSError(f'{path} {converted}: its filters are standardized in each pass, and as a plain network it would '
                      'compute something else. Expected the weights of the network with plain convolutions and '
                      'BatchNorm; load this file as it is, with load_from or ws=dict(pretrained=...)')
    backbone = {name[len(BACKBONE):]: shape for name, shape in shapes.items() if name.startswith(BACKBONE)}
    tried: list[list[str]] = []
    for part, expected in (('', shapes), ('backbone', backbone)):
        for rename in RENAMES.values() if expected else ():
            found = {rename(name): name for name in tensors}
            wrong = [_problem(name, shape, tensors.get(found.get(name, ''))) for name, shape in expected.items()]
            if not any(wrong):
                state_dict = {name: tensors[found[name]] for name in expected if name in found}
                left_over = set(tensors) - {found[name] for name in state_dict}
                problem = next((each for each in chain(*tried) if ' has shape ' in each), '') if part else ''
                return BatchNormWeights(state_dict, part, problem, [name for name in tensors if name in left_over],
                                        checkpoint.sha256, checkpoint.meta)
            tried.append([problem for problem in wrong if problem])
    problems = min(tried, key=len, default=['a network'])
    others = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
    raise WSError(f'{path} does not fit the network: {", ".join(problems[:3])}{others}. Known are the weights of the '
                  f'whole network, and of the backbone under {"; ".join(RENAMES)}')


def _conversion_of(meta: Mapping[str, Any]) -> str:
    """Return how the notes in a checkpoint show that its network was converted; '' if they do not."""
    if 'transplant' in meta:
        return 'was written by tools/transplant.py'
    try:
        tree = ast.parse(str(meta.get('cfg', '')))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ''
    models = [node.value for node in tree.body if isinstance(node, ast.Assign)
              and any(isinstance(target, ast.Name) and target.id == 'model' for target in node.targets)]
    for call in (node for model in models for node in ast.walk(model) if isinstance(node, ast.Call)):
        values = {keyword.arg: keyword.value for keyword in call.keywords}
        kind = getattr(values.get('type'), 'value', None)
        weight = {keyword.arg: getattr(keyword.value, 'value', None)
                  for keyword in getattr(values.get('ws'), 'keywords', [])}.get('weight', 'ws')
        if str(kind).startswith('mmws.') and weight != 'plain':
            return f'was trained with Weight Standardization (type={kind!r} in its config, weight={weight!r})'
    return ''


def _problem(name: str, shape: tuple[int, ...], tensor: Tensor | None) -> str:
    if tensor is None:
        return '' if name.endswith(OPTIONAL) else f'{name} is missing'
    found = tuple(tensor.shape)
    return '' if found == tuple(shape) else f'{name} has shape {found}, expected {tuple(shape)}'

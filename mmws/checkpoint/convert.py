"""Foreign GN+WS checkpoints to the toolkits' own form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmws.checkpoint.authors_deeplab import AUTHORS_DEEPLAB
from mmws.checkpoint.authors_imagenet import AUTHORS_IMAGENET
from mmws.checkpoint.format import Format, rename
from mmws.checkpoint.incompatible import why_foreign
from mmws.checkpoint.maskrcnn_benchmark import CAFFE2
from mmws.checkpoint.openmmlab import TOOLKIT, TOOLKIT_BACKBONE
from mmws.checkpoint.reader import read_checkpoint
from mmws.errors import WSError
from mmws.version import __version__

__all__ = ['Converted', 'convert_checkpoint']

FORMATS = (AUTHORS_IMAGENET, CAFFE2, AUTHORS_DEEPLAB, TOOLKIT_BACKBONE, TOOLKIT)
KEPT_META = ('dataset_meta', 'CLASSES', 'PALETTE')


@dataclass
class Converted:
    """Weights under the toolkit's names.

    Attributes:
        state_dict: the weights.
        meta: under ``mmws`` the format, the network, the variant of the formula, the input convention, the name and the
            SHA-256 of the source, and what was left over; beside it the classes, where the source names them.
    """

    state_dict: dict[str, Tensor]
    meta: dict[str, Any]


def convert_checkpoint(path: str | Path, to_rgb: bool = False) -> Converted:
    """Read a GN+WS checkpoint of any known format and give its weights the toolkit's names.

    The format is told by the keys. Every tensor is used, or named as left over with the reason.

    Args:
        path: the authors' ``.pth.tar`` and ``.pth``, maskrcnn-benchmark's ``.pkl``, mmdet's and open-mmlab's.
        to_rgb: reorder the input channels of the stem of a network trained on BGR. Exact: the statistics of a filter do
            not depend on the order of its elements. Mean and std remain the network's own.

    Raises:
        WSError: if the file cannot be read safely, its format is unknown or its formula another, or a tensor is
            unknown, missing or misshapen.

    Example:
        >>> convert_checkpoint('R-50-GN-WS.pth.tar')
        Traceback (most recent call last):
        mmws.errors.WSError: there is no checkpoint R-50-GN-WS.pth.tar; in .: there is none
    """
    source = read_checkpoint(path)
    tensors = {key.removeprefix('module.'): tensor for key, tensor in source.tensors.items()}
    try:
        style = _find_format(tensors)
        state_dict, left_over, network = rename(tensors, style)
        convention = dict(style.input)
        if to_rgb:
            convention = _flip_(state_dict, style)
    except WSError as error:
        raise WSError(f'{path}: {error}') from None
    left_over |= dict.fromkeys(source.rest, 'no weight')
    about = {'format': style.name, 'network': network, 'eps': 1e-5, 'unbiased': True, 'input': convention,
             'source': Path(path).name, 'sha256': source.sha256, 'left_over': left_over, 'mmws': __version__}
    kept = {key: source.meta[key] for key in KEPT_META if key in source.meta}
    return Converted(state_dict, {**kept, 'mmws': about})


def _find_format(tensors: Mapping[str, Tensor]) -> Format:
    foreign = why_foreign(tensors)
    if foreign:
        raise WSError(f'these weights do not fit: {foreign}')
    style = next((style for style in FORMATS if style.matches(tensors.keys())), None)
    if style is None:
        known = '; '.join(style.name for style in FORMATS)
        raise WSError(f'of no known format; expected {known}; its tensors are {", ".join(list(tensors)[:3])}, ...')
    return style


def _flip_(state_dict: dict[str, Tensor], style: Format) -> dict[str, Any]:
    if style.input['channels'] != 'BGR':
        raise WSError(f'{style.name} take {style.input["channels"]} already, there is nothing to reorder')
    state_dict['conv1.weight'] = state_dict['conv1.weight'].flip(1)
    return {'channels': 'RGB', 'mean': style.input['mean'][::-1], 'std': style.input['std'][::-1]}

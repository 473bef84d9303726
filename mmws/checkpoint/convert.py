"""Convert a foreign GN+WS checkpoint to the toolkit's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmws.checkpoint.authors_deeplab import AUTHORS_DEEPLAB
from mmws.checkpoint.authors_imagenet import AUTHORS_IMAGENET
from mmws.checkpoint.format import Format, rename_tensors
from mmws.checkpoint.incompatible import find_incompatibility
from mmws.checkpoint.maskrcnn_benchmark import CAFFE2
from mmws.checkpoint.reader import read_checkpoint
from mmws.checkpoint.toolkit_models import TOOLKIT, TOOLKIT_BACKBONE
from mmws.errors import WSError, without_prefix
from mmws.version import __version__

__all__ = ['KEPT_META', 'Converted', 'convert_checkpoint']

FORMATS = (AUTHORS_DEEPLAB, AUTHORS_IMAGENET, CAFFE2, TOOLKIT_BACKBONE, TOOLKIT)  # the first match counts
KEPT_META = ('dataset_meta', 'CLASSES', 'PALETTE')


@dataclass
class Converted:
    """Weights with the toolkit's names.

    Attributes:
        state_dict: the weights.
        meta: the classes, if the checkpoint has them. Under ``mmws``: the format, the network, the variant of the
            formula, the input convention, the source and its SHA-256, and the tensors left over.
    """

    state_dict: dict[str, Tensor]
    meta: dict[str, Any]


def convert_checkpoint(path: str | Path, to_rgb: bool = False) -> Converted:
    """Read a GN+WS checkpoint of any known format and give its weights the toolkit's names.

    The names of the tensors identify the format. Each tensor is either used or listed as left over, with the reason.

    Args:
        path: ``.pth.tar`` or ``.pth`` of the authors, ``.pkl`` of maskrcnn-benchmark, or a file of a toolkit.
        to_rgb: reorder the input channels of the first convolution of a network trained on BGR. This is exact, because
            the statistics of a filter do not depend on the order of its elements. Mean and std keep their values.

    Raises:
        WSError: if the file or its format is refused, or a tensor is unknown, missing or has the wrong shape.

    Example:
        >>> convert_checkpoint('R-50-GN-WS.pth.tar')
        Traceback (most recent call last):
        mmws.errors.WSError: checkpoint R-50-GN-WS.pth.tar not found; the folder . has no .tar file
    """
    checkpoint = read_checkpoint(path)
    tensors = {without_prefix(key, 'module.'): tensor for key, tensor in checkpoint.tensors.items()}
    try:
        file_format = _find_format(tensors)
        state_dict, left_over, network = rename_tensors(tensors, file_format)
        convention = _to_rgb_(state_dict, file_format) if to_rgb else dict(file_format.input)
    except WSError as error:
        raise WSError(f'{path}: {error}') from None
    left_over.update(dict.fromkeys(checkpoint.rest, 'not a weight'))
    about = {'format': file_format.name, 'network': network, 'eps': 1e-5, 'unbiased': True, 'input': convention,
             'source': Path(path).name, 'sha256': checkpoint.sha256, 'left_over': left_over, 'mmws': __version__}
    kept = {key: checkpoint.meta[key] for key in KEPT_META if key in checkpoint.meta}
    return Converted(state_dict, {**kept, 'mmws': about})


def _find_format(tensors: Mapping[str, Tensor]) -> Format:
    reason = find_incompatibility(tensors.keys())
    if reason:
        raise WSError(f'incompatible weights: {reason}')
    for known in FORMATS:
        if known.matches(tensors.keys()):
            return known
    raise WSError(f'unknown format; expected {"; ".join(known.name for known in FORMATS)}; '
                  f'got the tensors {", ".join(list(tensors)[:3])}, ...')


def _to_rgb_(state_dict: dict[str, Tensor], file_format: Format) -> dict[str, Any]:
    if file_format.input['channels'] != 'BGR':
        raise WSError(f'{file_format.name}: the input is {file_format.input["channels"]} already; leave out --to-rgb')
    state_dict['conv1.weight'] = state_dict['conv1.weight'].flip(1)
    return {'channels': 'RGB', 'mean': file_format.input['mean'][::-1], 'std': file_format.input['std'][::-1]}

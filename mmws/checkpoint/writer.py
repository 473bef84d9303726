"""Write a checkpoint whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mmws.errors import WSError
from mmws.files import atomic_write, check_output

__all__ = ['ENDINGS', 'write_checkpoint']

ENDINGS = ('.pth', '.safetensors')


def write_checkpoint(path: str | Path, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write weights and what is known of them as the toolkits do, ``dict(meta=..., state_dict=...)``.

    Args:
        path: ``.pth`` for torch's format, ``.safetensors`` for that one, where ``meta`` is JSON under its name. What
            stands there is replaced only by a whole file.

    Raises:
        WSError: if the ending is another, the folder is not there, or the disk is full.

    Example:
        >>> write_checkpoint('model.onnx', {}, {})
        Traceback (most recent call last):
        mmws.errors.WSError: model.onnx: expected a name that ends in .pth or .safetensors
    """
    check_output(path, endings=ENDINGS)
    with atomic_write(path) as partial:
        try:
            _write(partial, Path(path).suffix, state_dict, meta)
        except (RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
            raise WSError(f'{path} could not be written; is the disk full? {error}') from None


def _write(path: Path, ending: str, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    if ending == '.pth':
        torch.save({'meta': dict(meta), 'state_dict': dict(state_dict)}, path)
    else:
        # copies, for safetensors refuses tensors that share memory
        try:
            text = json.dumps(meta)
        except (TypeError, ValueError) as error:
            raise WSError(f'the meta data cannot be written to .safetensors ({error}); write .pth') from None
        save_file({name: tensor.detach().clone(memory_format=torch.contiguous_format)
                   for name, tensor in state_dict.items()}, path, {'format': 'pt', 'meta': text})

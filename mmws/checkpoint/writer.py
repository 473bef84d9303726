"""Write a checkpoint atomically."""

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

__all__ = ['ENDINGS', 'check_meta', 'write_checkpoint']

ENDINGS = ('.pth', '.safetensors')


def write_checkpoint(path: str | Path, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write weights and their meta data in the toolkits' form, ``dict(meta=..., state_dict=...)``.

    Args:
        path: ``.pth``, or ``.safetensors`` with ``meta`` as JSON. A failure leaves the old file unchanged.

    Raises:
        WSError: if the suffix is wrong, the folder does not exist, or the disk is full.

    Example:
        >>> write_checkpoint('model.onnx', {}, {})
        Traceback (most recent call last):
        mmws.errors.WSError: model.onnx: expected a name that ends in .pth or .safetensors
    """
    check_output(path, endings=ENDINGS)
    with atomic_write(path) as partial:
        try:
            if Path(path).suffix == '.pth':
                torch.save({'meta': dict(meta), 'state_dict': dict(state_dict)}, partial)
            else:
                _save_safetensors(state_dict, check_meta(path, meta), partial)
        except (RuntimeError, SafetensorError) as error:  # raised by torch and safetensors if the disk is full
            raise WSError(f'cannot write {path}; is the disk full? {error}') from None


def check_meta(path: str | Path, meta: Mapping[str, Any]) -> str:
    """Return ``meta`` as JSON, for a ``.safetensors`` file; '' for another file, which takes any.

    Raises:
        WSError: if it is not possible.
    """
    if Path(path).suffix != '.safetensors':
        return ''
    try:
        return json.dumps(meta)
    except (TypeError, ValueError) as error:
        raise WSError(f'cannot write the meta data to .safetensors ({error}); write .pth') from None


def _save_safetensors(state_dict: Mapping[str, Tensor], text: str, path: Path) -> None:
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state_dict.items()}
    save_file(copies, path, {'format': 'pt', 'meta': text})  # copies, because safetensors refuses shared memory

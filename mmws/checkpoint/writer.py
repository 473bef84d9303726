"""Write a checkpoint whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmws.errors import WSError

__all__ = ['write_checkpoint']


def write_checkpoint(path: str | Path, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write weights and what is known of them as the toolkits do, ``dict(meta=..., state_dict=...)``.

    Args:
        path: ``.pth`` for torch's format, ``.safetensors`` for that one, where ``meta`` is JSON under its name. What
            stands there is replaced only by a whole file.

    Raises:
        WSError: if the ending is another, or the folder is not there.

    Example:
        >>> write_checkpoint('model.onnx', {}, {})
        Traceback (most recent call last):
        mmws.errors.WSError: model.onnx: expected a name that ends in .pth or .safetensors
    """
    path = Path(path)
    if path.suffix not in ('.pth', '.safetensors'):
        raise WSError(f'{path}: expected a name that ends in .pth or .safetensors')
    if not path.parent.is_dir():
        raise WSError(f'{path}: there is no folder {path.parent}')
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        if path.suffix == '.pth':
            torch.save({'meta': dict(meta), 'state_dict': dict(state_dict)}, partial)
        else:
            # copies, for safetensors refuses tensors that share memory
            save_file({name: tensor.detach().clone(memory_format=torch.contiguous_format)
                       for name, tensor in state_dict.items()}, partial, {'format': 'pt', 'meta': json.dumps(meta)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

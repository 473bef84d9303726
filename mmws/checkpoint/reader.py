"""Safe reader of checkpoints: nothing in a file is executed."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmws.checkpoint.numpy_pickle import load_arrays
from mmws.checkpoint.torch_pickle import load_without_history
from mmws.errors import FOREIGN_ERRORS, WSError
from mmws.files import check_input
from mmws.ops.torch_compat import ALLOWS_NAMED_GLOBALS

__all__ = ['Checkpoint', 'read_checkpoint', 'sha256_of']

LEGACY_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # torch before 1.6, as the authors' files are
MALFORMED = (*FOREIGN_ERRORS, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, struct.error, EOFError,
             MemoryError)  # raised on a malformed file
CODE = ('GLOBAL', 'Unsupported', 'is not allowed')  # in the errors of the unpicklers on code

TORCHS_ADVICE = 'WeightsUnpickler error: '  # torch 2.0 puts advice to switch its checks off before the reason


@dataclass
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
        tensors: the weights by name.
        rest: other entries, for example ``meta``, ``epoch``, ``optimizer``.
        sha256: hash of the file.
    """

    tensors: dict[str, Tensor]
    rest: dict[str, Any]
    sha256: str

    @property
    def meta(self) -> dict[str, Any]:
        """Notes of the toolkit on the training, or an empty dict."""
        meta = self.rest.get('meta')
        return {str(key): value for key, value in meta.items()} if isinstance(meta, dict) else {}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of torch (any version), safetensors, or Caffe2's pickled arrays.

    torch's files are read with ``torch.load(weights_only=True)``; in torch < 2.6, which then refuses the log history
    of mmengine's checkpoints, with a restricted unpickler.

    Raises:
        WSError: if the file does not exist, is malformed, contains more than tensors, numbers and text, or has a weight
            that is complex, sparse, quantized or contains NaN values.

    Example:
        >>> read_checkpoint('nowhere.pth')
        Traceback (most recent call last):
        mmws.errors.WSError: checkpoint nowhere.pth not found; the folder . has no .pth file
    """
    path = check_input('checkpoint', path)
    try:
        tensors, rest = _split_weights(_load(path))
        for name, tensor in tensors.items():
            _check_tensor(name, tensor, path.stat().st_size)
    except (*MALFORMED, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # cannot open the file; an invalid offset in the file raises an OSError without a name
        lines = str(error).strip().splitlines() or [type(error).__name__]
        code = next((line.strip() for line in lines if any(text in line for text in CODE)), '')
        note = ' (nothing in it was executed)' if code else ''
        raise WSError(f'cannot use {path}{note}: {(code or lines[0]).rpartition(TORCHS_ADVICE)[2]:.300}') from None
    return Checkpoint(tensors, rest, sha256_of(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _load(path: Path) -> Any:
    with path.open('rb') as file:
        start = file.read(len(LEGACY_TORCH))
        if not start or start.lstrip()[:1] == b'<':
            raise ValueError('it is empty' if not start else 'it is a web page; repeat the download')
        if path.suffix == '.safetensors':
            return _load_safetensors(path)
        if start.startswith(b'PK'):
            _check_zip(path)
            if not ALLOWS_NAMED_GLOBALS:
                return load_without_history(path)
        elif start != LEGACY_TORCH:
            file.seek(0)
            return load_arrays(file)
    return torch.load(path, map_location='cpu', weights_only=True)


def _load_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, 'pt') as file:
        meta = json.loads((file.metadata() or {}).get('meta', '{}'))
        return {'meta': meta, 'state_dict': {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


def _check_zip(path: Path) -> None:
    """Refuse a zip file whose entries are larger than the file: torch stores entries uncompressed."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError(f'it unpacks to more than its size ({", ".join(packed[:1]) or "entries overlap"})')
        for entry in entries:
            if entry.filename.endswith('/byteorder') and archive.read(entry) != b'little':
                raise ValueError('big-endian numbers are not supported')


def _split_weights(content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not isinstance(content, dict):
        raise ValueError(f'expected weights by name, got a {type(content).__name__}')
    inner = next((key for key in ('state_dict', 'blobs', 'model') if isinstance(content.get(key), dict)), None)
    named = content if inner is None else content[inner]
    rest = {} if inner is None else {key: value for key, value in content.items() if key != inner}
    tensors = {str(name): torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
               for name, value in named.items() if isinstance(value, (Tensor, np.ndarray))}
    if not tensors:
        raise ValueError('it contains no tensors by name')
    rest.update({name: value for name, value in named.items() if str(name) not in tensors})
    return tensors, {str(name): value for name, value in rest.items()}


def _check_tensor(name: str, tensor: Tensor, file_size: int) -> None:
    if tensor.layout is not torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
        raise ValueError(f'{name} is not a dense tensor')
    if tensor.numel() * tensor.element_size() > min(tensor.untyped_storage().nbytes(), file_size):
        raise ValueError(f'{name} claims shape {tuple(tensor.shape)}, which is larger than the file')
    if tensor.is_complex():
        raise ValueError(f'{name} contains complex numbers')
    if tensor.is_floating_point() and tensor.isnan().any():
        raise ValueError(f'{name} contains NaN values: the training diverged')

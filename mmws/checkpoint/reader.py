"""The one reader of checkpoints: nothing in a file is executed, whatever it says."""

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
from mmws.errors import WSError
from mmws.files import check_input

__all__ = ['Checkpoint', 'read_checkpoint', 'sha256_of']

LEGACY_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # torch before 1.6, as the authors' files are
# What unpicklers raise on what is no pickle of theirs.
MALFORMED = (pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, struct.error, EOFError, ValueError,
             RuntimeError, LookupError, TypeError, AttributeError, ImportError, ArithmeticError, MemoryError,
             AssertionError)


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        tensors: the weights by name.
        rest: what stood beside them: ``meta``, ``epoch``, ``optimizer``.
        sha256: of the file.
    """

    tensors: dict[str, Tensor]
    rest: dict[str, Any]
    sha256: str

    @property
    def meta(self) -> dict[str, Any]:
        """What the toolkit noted of the training, empty if nothing."""
        meta = self.rest.get('meta')
        return {str(key): value for key, value in meta.items()} if isinstance(meta, dict) else {}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of torch (of any age), safetensors, or Caffe2's pickled arrays.

    torch's files are read by ``torch.load(weights_only=True)``, with no other way to fall back to.

    Raises:
        WSError: if there is no such file, it holds anything but tensors, numbers and text, or claims sizes that it
            does not have.

    Example:
        >>> read_checkpoint('nowhere.pth')
        Traceback (most recent call last):
        mmws.errors.WSError: there is no checkpoint nowhere.pth; in .: there is none
    """
    path = check_input('checkpoint', path)
    try:
        content = _load(path)
        tensors, rest = _weights(content)
        for name, tensor in tensors.items():
            _check_extent(name, tensor, path.stat().st_size)
            _check_numbers(name, tensor)
    except (*MALFORMED, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it cannot be opened; an offset that leads out of the file has no name
        what = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in what if 'GLOBAL' in line or 'Unsupported' in line), what[0])
        raise WSError(f'{path} is refused, nothing in it was executed: {reason:.300}') from None
    return Checkpoint(tensors, rest, sha256_of(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _load(path: Path) -> Any:
    with path.open('rb') as file:
        start = file.read(len(LEGACY_TORCH))
        if not start or start.lstrip()[:1] == b'<':
            raise ValueError('it is empty' if not start else 'it is a web page, as a download that failed leaves one')
        if path.suffix == '.safetensors':
            return _load_safetensors(path)
        if start.startswith(b'PK'):
            _check_zip(path)
        elif start != LEGACY_TORCH:
            file.seek(0)
            return load_arrays(file)
    return torch.load(path, map_location='cpu', weights_only=True)


def _load_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, 'pt') as file:
        metadata = file.metadata() or {}
        return {'meta': json.loads(metadata.get('meta', '{}')),
                'state_dict': {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


def _check_zip(path: Path) -> None:
    """torch stores without compression, so that nothing in a file of its can be larger than the file."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError(f'it unpacks to more than it is ({", ".join(packed[:1]) or "entries overlap"})')
        for entry in entries:
            if entry.filename.endswith('/byteorder') and archive.read(entry) != b'little':
                raise ValueError('it holds big-endian numbers')


def _weights(content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the weights from what stands beside them."""
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}, where weights by name are expected')
    inner = next((key for key in ('state_dict', 'blobs', 'model') if isinstance(content.get(key), dict)), None)
    named = content if inner is None else content[inner]
    rest = {} if inner is None else {key: value for key, value in content.items() if key != inner}
    tensors = {str(name): torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
               for name, value in named.items() if isinstance(value, (Tensor, np.ndarray))}
    if not tensors:
        raise ValueError('it holds no tensors by name')
    rest |= {name: value for name, value in named.items() if str(name) not in tensors}
    return tensors, {str(name): value for name, value in rest.items()}


def _check_extent(name: str, tensor: Tensor, file_size: int) -> None:
    if tensor.layout is not torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
        raise ValueError(f'{name} is no dense tensor')
    if tensor.numel() * tensor.element_size() > min(tensor.untyped_storage().nbytes(), file_size):
        raise ValueError(f'{name} claims the shape {tuple(tensor.shape)}, more than the file holds')


def _check_numbers(name: str, tensor: Tensor) -> None:
    if tensor.is_complex():
        raise ValueError(f'{name} holds complex numbers')
    if tensor.is_floating_point() and tensor.isnan().any():
        raise ValueError(f'{name} holds numbers that are none (NaN): the training that wrote it had diverged')

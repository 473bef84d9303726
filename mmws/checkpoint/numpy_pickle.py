"""Restricted unpickler of numpy arrays, for Caffe2's files. It calls no function that the file names."""

from __future__ import annotations

import pickle
import re
from math import prod
from typing import IO, Any

import numpy as np

__all__ = ['load_arrays']


class _Dtype:
    """Replacement of ``numpy.dtype``: a numeric type in the byte order of this machine."""

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch('[fiu][1248]', name):
            raise pickle.UnpicklingError(f'expected arrays of numbers, got {name!r:.40}')
        self.numpy = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == '>':
            raise pickle.UnpicklingError('big-endian numbers are not supported')


class _Array:
    """Replacement of ``numpy.ndarray``: checks the pickled state before it makes an array."""

    def __new__(cls, *arguments: Any) -> _Array:
        if arguments and arguments != (cls, (0,), b'b') and arguments != (cls, (0,), 'b'):
            raise pickle.UnpicklingError('numpy does not pickle an array with these arguments')
        return super().__new__(cls)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode('latin1') if isinstance(data, str) else data  # written by Python 2
        if not all(type(size) is int and size >= 0 for size in shape) or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError('an array has no valid shape or dtype')
        if len(data) != prod(shape) * dtype.numpy.itemsize:
            raise pickle.UnpicklingError(f'an array claims shape {tuple(shape)} but has {len(data)} bytes')
        self.numpy = np.frombuffer(data, dtype.numpy).reshape(shape, order='F' if fortran else 'C')


class _Bytes:
    """Replacement of ``_codecs.encode``, with which Python 3 pickles bytes in protocol 2."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding not in ('latin1', 'latin-1'):
            raise pickle.UnpicklingError(f'text encoding {encoding!r:.40}, expected latin1')
        return text.encode('latin1')

    def __setstate__(self, state: Any) -> None:  # without this method, a pickle can set attributes of the class
        raise pickle.UnpicklingError('bytes have no state')


ALLOWED: dict[str, Any] = {
    'numpy.core.multiarray._reconstruct': _Array,
    'numpy._core.multiarray._reconstruct': _Array,
    'numpy.ndarray': _Array,
    'numpy.dtype': _Dtype,
    '_codecs.encode': _Bytes,
    'collections.OrderedDict': dict,
}


# The unpickler in Python: the one in C allocates as much memory as the file claims to need.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' not in ALLOWED:
            raise pickle.UnpicklingError(f'{module}.{name} is not allowed; only numpy arrays and plain containers are')
        return ALLOWED[f'{module}.{name}']


def load_arrays(file: IO[bytes]) -> Any:
    """Return the content of a pickle of plain containers and numpy arrays. Nothing in it is executed.

    Raises:
        pickle.UnpicklingError: if it names any other type. Malformed bytes raise other exceptions of Python too.

    Example:
        >>> import io
        >>> load_arrays(io.BytesIO(pickle.dumps({'blobs': {'conv1_w': np.ones(2, 'f4')}})))
        {'blobs': {'conv1_w': array([1., 1.], dtype=float32)}}
    """
    return _to_numpy(_Unpickler(file, encoding='latin1').load(), levels=2)


def _to_numpy(value: Any, levels: int) -> Any:  # of limited depth: a small file can nest one dict 2**100 times
    if isinstance(value, dict) and levels:
        return {key: _to_numpy(part, levels - 1) for key, part in value.items()}
    return value.numpy if isinstance(value, _Array) else value

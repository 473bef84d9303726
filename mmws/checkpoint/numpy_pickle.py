"""Caffe2's pickles of numpy arrays, read without numpy's or anybody's constructors being called."""

from __future__ import annotations

import pickle
from math import prod
from typing import IO, Any

import numpy as np

__all__ = ['load_arrays']

NUMBERS = 'fiu'  # kinds of dtype: floating point, signed, unsigned


class _Dtype:
    """Stands in for ``numpy.dtype``: a number's kind and size, in this machine's order of bytes."""

    def __init__(self, name: str, *_: Any) -> None:
        self.numpy = np.dtype(name) if isinstance(name, str) and len(name) <= 3 else np.dtype('O')
        if self.numpy.kind not in NUMBERS:
            raise pickle.UnpicklingError(f'it holds an array of {name!r:.40}, where numbers are expected')
        self._check_order(self.numpy.byteorder)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._check_order(state[1])

    @staticmethod
    def _check_order(order: str) -> None:
        if order == '>':
            raise pickle.UnpicklingError('it holds big-endian numbers')


class _Array:
    """Stands in for ``numpy.ndarray``: takes what numpy pickles and checks it before an array is made."""

    def __new__(cls, *arguments: Any) -> _Array:
        if arguments and arguments != (cls, (0,), b'b') and arguments != (cls, (0,), 'b'):
            raise pickle.UnpicklingError('it makes an array in another way than numpy pickles one')
        return super().__new__(cls)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode('latin1') if isinstance(data, str) else data  # Python 2's
        if not all(type(size) is int and size >= 0 for size in shape) or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError('it holds an array without a shape')
        if len(data) != prod(shape) * dtype.numpy.itemsize:
            raise pickle.UnpicklingError(f'an array of shape {tuple(shape)} claims to be in {len(data)} bytes')
        self.numpy = np.frombuffer(data, dtype.numpy).reshape(shape, order='F' if fortran else 'C')


class _Bytes:
    """Stands in for ``_codecs.encode``, in which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding not in ('latin1', 'latin-1'):
            raise pickle.UnpicklingError(f'it encodes text as {encoding!r:.40}')
        return text.encode('latin1')

    def __setstate__(self, state: Any) -> None:  # else a pickle could set attributes of this class
        raise pickle.UnpicklingError('it gives a state to bytes')


_ADMITTED: dict[str, Any] = {
    'numpy.core.multiarray._reconstruct': _Array,
    'numpy._core.multiarray._reconstruct': _Array,
    'numpy.ndarray': _Array,
    'numpy.dtype': _Dtype,
    '_codecs.encode': _Bytes,
    'collections.OrderedDict': dict,
}


# Python's own unpickler rather than C's, which sets memory aside for as many objects as a file says it will have.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' not in _ADMITTED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is refused: only numpy arrays and plain '
                                         'containers are read')
        return _ADMITTED[f'{module}.{name}']


def load_arrays(file: IO[bytes]) -> Any:
    """Return what a pickle of plain containers holds, its numpy arrays as arrays. Nothing in it is executed.

    Raises:
        pickle.UnpicklingError: if it asks for anything else, or an array is not what it claims. On garbage also what
            Python raises on garbage.

    Example:
        >>> import io
        >>> load_arrays(io.BytesIO(pickle.dumps({'blobs': {'conv1_w': np.ones(2, 'f4')}})))
        {'blobs': {'conv1_w': array([1., 1.], dtype=float32)}}
    """
    return _to_numpy(_Unpickler(file, encoding='latin1').load(), levels=2)


def _to_numpy(value: Any, levels: int) -> Any:  # not to the bottom: a small file can nest one dict 2**100 times
    if isinstance(value, dict) and levels:
        return {key: _to_numpy(part, levels - 1) for key, part in value.items()}
    return value.numpy if isinstance(value, _Array) else value

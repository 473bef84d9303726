"""Restricted unpickler of torch's files, for torch < 2.6.

There ``torch.load(weights_only=True)`` cannot be told to accept the log history in mmengine's checkpoints. This
unpickler reads everything else and skips the history. It calls no function that the file names, except those that
make tensors.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

__all__ = ['load_without_history']

_TENSORS = {'torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_parameter', 'torch.Size',
            'collections.OrderedDict', 'collections.Counter'}  # torch >= 2.6 allows them too
_HISTORY = {'mmengine.logging.history_buffer.HistoryBuffer', 'builtins.getattr', '__builtin__.getattr',
            '__builtin__.bytes', 'numpy.ndarray', 'numpy.dtype', '_codecs.encode',
            *(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core') for name in ('_reconstruct', 'scalar'))}


class _Skipped:
    """Replacement of an object of the log history: without content, and it cannot be written."""

    def __new__(cls, *_: Any) -> _Skipped:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise pickle.PicklingError('the log history of the checkpoint was not read')


# The unpickler in Python: the one in C cannot restrict the opcode that sets attributes.
class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' in _HISTORY:
            return _Skipped
        if f'{module}.{name}' in _TENSORS or (module == 'torch' and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'{module}.{name} is not allowed; only tensors and plain containers are')

    def load_build(self) -> None:
        built: Any = self.stack[-2]  # type: ignore[attr-defined]
        if type(built) not in (_Skipped, OrderedDict):
            raise pickle.UnpicklingError(f'the state of a {type(built).__name__} is not allowed')
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


def load_without_history(path: Path) -> Any:
    """Return the content of a zip file of ``torch.save``, on the CPU. Only ``message_hub`` is left out.

    Raises:
        pickle.UnpicklingError: if the file names a type or function that is not allowed. Malformed bytes raise other
            exceptions of Python and torch too.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save({'weight': torch.ones(2)}, file.name)
        ...     load_without_history(Path(file.name))
        {'weight': tensor([1., 1.])}
    """
    restricted: Any = SimpleNamespace(Unpickler=_Unpickler, __name__=__name__)
    content = torch.load(path, map_location='cpu', pickle_module=restricted, weights_only=False)
    if isinstance(content, dict):
        content.pop('message_hub', None)
    return content

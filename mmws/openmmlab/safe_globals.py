"""Allow ``torch.load(weights_only=True)`` to read the log history in mmengine's checkpoints.

Without this, mmengine 0.10.7 cannot test or resume from its own checkpoints under torch >= 2.6. With an older torch,
mmengine needs no list, and :mod:`mmws.checkpoint.torch_pickle` reads the files.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

from mmws.ops.torch_compat import add_safe_globals

__all__ = ['allow_log_history']


def allow_log_history() -> None:
    """Add mmengine's ``HistoryBuffer`` to the allowed list: its class, its arrays and its four statistics."""
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ('float64', 'int64')),
        (reconstruct, 'numpy.core.multiarray._reconstruct'), (reconstruct, 'numpy._core.multiarray._reconstruct'),
        (scalar, 'numpy.core.multiarray.scalar'), (scalar, 'numpy._core.multiarray.scalar'),
        (_statistic, 'builtins.getattr'), (_statistic, '__builtin__.getattr')])


def _statistic(owner: Any, name: str) -> Any:
    """Replacement for ``getattr`` in a checkpoint; returns the four methods of the buffer only."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'the checkpoint requests the attribute {name!r} of {owner!r}; this is not allowed')

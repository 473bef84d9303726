"""Lets ``torch.load(weights_only=True)`` read what mmengine writes into its own checkpoints: the history of the log.

mmengine 0.10.7 cannot test or resume from its own checkpoints under torch >= 2.6, because it does not say so itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

__all__ = ['allow_log_history']


def allow_log_history() -> None:
    """Admit mmengine's ``HistoryBuffer`` to safe unpickling: its class, its arrays and its four statistics.

    Example:
        >>> allow_log_history()
        >>> HistoryBuffer in torch.serialization.get_safe_globals()
        True
    """
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ('float64', 'int64')]
    names: dict[str, Callable[..., Any]] = {
        'numpy.core.multiarray._reconstruct': reconstruct,
        'numpy._core.multiarray._reconstruct': reconstruct,
        'numpy.core.multiarray.scalar': scalar,
        'numpy._core.multiarray.scalar': scalar,
        '__builtin__.getattr': _statistic,
        'builtins.getattr': _statistic,
    }
    torch.serialization.add_safe_globals(
        [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *((allowed, name) for name, allowed in names.items())])


def _statistic(owner: Any, name: str) -> Callable[..., Any]:
    """What a checkpoint gets for ``getattr``: it needs the buffer's methods and nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        method: Callable[..., Any] = getattr(owner, name)
        return method
    raise pickle.UnpicklingError(f'a checkpoint asks for the attribute {name!r} of {owner!r}, which is refused')

"""Worker processes for checks and trainings: one thread each, no output."""

from __future__ import annotations

import ctypes
import gc
import io
import logging
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

import torch

__all__ = ['prepare_worker', 'release_memory', 'worker_pool']


def prepare_worker(log_level: int = logging.WARNING) -> None:
    """Use one thread and print nothing: no warnings, no log messages up to ``log_level``, no standard output."""
    torch.set_num_threads(1)
    logging.disable(log_level)
    warnings.simplefilter('ignore')
    sys.stdout = io.StringIO()  # pycocotools prints


def release_memory() -> None:
    """Return the memory of earlier work to the system: reference cycles hold models, and glibc keeps what is freed."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def worker_pool(processes: int = 1, prepare: Callable[..., None] = prepare_worker,
                arguments: tuple[Any, ...] = ()) -> ProcessPoolExecutor:
    """Return a pool of new processes; each calls ``prepare(*arguments)`` first.

    Processes are spawned: a forked process can hang if torch has threads.
    """
    return ProcessPoolExecutor(processes, get_context('spawn'), prepare, arguments)

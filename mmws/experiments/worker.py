"""Worker processes for checks and trainings: one thread each, no output."""

from __future__ import annotations

import ctypes
import gc
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import torch
from psutil import Process

__all__ = ['WorkerPool', 'keep_memory', 'prepare_worker', 'release_memory', 'terminate_workers']

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h


def prepare_worker(log_level: int = logging.WARNING) -> None:
    """Use one thread and print nothing: no warnings, no log messages up to ``log_level``, no standard output.

    Ctrl-C reaches all processes of a terminal; the main process alone reacts to it. The process ends with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent_process(), ), daemon=True).start()
    torch.set_num_threads(1)
    logging.disable(log_level)
    warnings.simplefilter('ignore')
    sys.stdout = io.StringIO()  # pycocotools prints


def _end_with(parent: BaseProcess | None) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)


def keep_memory() -> None:
    """Keep the memory of tensors that are freed for the next ones; see :func:`release_memory`.

    glibc returns each large block to the system at once, and the system clears it again, page by page, for the next
    tensor.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2 ** 31 - 1)


def release_memory(above: float = 4) -> None:
    """Free the memory of earlier work: reference cycles hold models, and glibc keeps what is freed.

    A process of more than ``above`` GiB returns it to the system. Memory that is kept costs no time in the next work.
    """
    gc.collect()
    if Process().memory_info().rss < above * 2 ** 30:
        return
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class WorkerPool(ProcessPoolExecutor):
    """Pool of new processes; each calls ``prepare(*arguments)`` first.

    Processes are spawned: a forked process can hang if torch has threads. As a context manager the pool does not wait
    for unfinished work after an exception, such as an interrupt.
    """

    def __init__(self, processes: int = 1, prepare: Callable[..., None] = prepare_worker,
                 arguments: tuple[Any, ...] = ()) -> None:
        super().__init__(processes, get_context('spawn'), prepare, arguments)

    def __exit__(self, exception_type: Any, *details: Any) -> bool | None:
        if exception_type is not None:
            terminate_workers()
        return super().__exit__(exception_type, *details)


def terminate_workers() -> None:
    """End all worker processes of this process; what they were doing is lost."""
    for child in active_children():
        child.terminate()

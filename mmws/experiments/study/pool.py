"""Run a study with several runs at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from concurrent.futures.process import BrokenProcessPool

from mmws.errors import WSError
from mmws.experiments.study.plan import Record, Run, plan
from mmws.experiments.study.results import Results
from mmws.experiments.study.run import prepare, train
from mmws.experiments.study.schema import Study, Task
from mmws.experiments.study.start import start_folder
from mmws.experiments.worker import WorkerPool, terminate_workers

__all__ = ['prepare_starts', 'run_all']

MESSAGE_LENGTH = 300


def run_all(study: Study, results: Results, processes: int, show: Callable[[Run, Record], None],
            job: Callable[[Run, Task], Record] = train) -> None:
    """Do the runs that are not in ``results``, and save the record of each as soon as it ends.

    Args:
        processes: number of runs at a time, each in a process with one thread.
        show: called after each run.
        job: does a run and returns its record.

    Raises:
        WSError: if ``processes`` is less than 1, or a run finds a mistake in a config; saved records remain.
    """
    if processes < 1:
        raise WSError(f'expected at least one run at a time, got {processes}')
    idle = [WorkerPool() for _ in range(processes)]  # separate pools: a process that dies breaks its pool
    busy: dict[Future[Record], tuple[WorkerPool, Run]] = {}
    tasks = {task.name: task for task in study.tasks}
    try:
        while True:
            running = {run.name for _, run in busy.values()}
            ready = [run for run in plan(study, results.done)
                     if run.rate is not None and run.name not in results.done and run.name not in running]
            for run, pool in zip(ready, list(idle)):
                idle.remove(pool)
                busy[pool.submit(job, run, tasks[run.task])] = (pool, run)
            if not busy:
                break
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                pool, run = busy.pop(future)
                idle.append(WorkerPool() if isinstance(future.exception(), BrokenProcessPool) else pool)
                record = _record(run, future)
                results.add(record)
                show(run, record)
    finally:  # after an interrupt too: unfinished runs are not saved
        terminate_workers()


def prepare_starts(study: Study, results: Results, processes: int, show: Callable[[Run], None],
                   job: Callable[[Run], None] = prepare) -> None:
    """Write the weights that runs which are not in ``results`` start from, unless they exist.

    ``show`` is called after each.
    """
    starts = {start_folder(run): run for run in plan(study, results.done)
              if run.start and run.name not in results.done and not start_folder(run).exists()}
    if not starts:
        return
    with WorkerPool(processes) as pool:
        futures = {pool.submit(job, run): run for run in starts.values()}
        for future in as_completed(futures):
            future.result()
            show(futures[future])


def _record(run: Run, future: Future[Record]) -> Record:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, WSError) or not isinstance(error, Exception):
        raise error
    message = 'its process died' if isinstance(error, BrokenProcessPool) else f'{type(error).__name__}: {error}'
    return {'name': run.name, 'status': 'crashed', 'message': message[:MESSAGE_LENGTH], 'metric': None, 'seconds': None,
            'settings': run.settings(), 'validation': [], 'loss': []}

"""The runs of a study, several at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from mmws.errors import WSError
from mmws.experiments.study.plan import Record, Run, plan
from mmws.experiments.study.results import Results
from mmws.experiments.study.run import prepare_process, train
from mmws.experiments.study.study import Study, Task

__all__ = ['run_all']

CLIP = 300  # letters of a message
Job = Callable[[Run, Task], Record]


def run_all(study: Study, results: Results, processes: int, show: Callable[[Run, Record], None],
            job: Job = train) -> None:
    """Do the runs that are not done yet, so many at a time, and keep what each comes to as soon as it ends.

    Args:
        study: what is compared.
        results: where the outcomes go, and what is done already.
        processes: runs at a time, each in a process of one thread.
        show: called after each.
        job: what makes a record of a run.

    Raises:
        WSError: if there is no process to run them in, or a run finds a mistake in a config; what was done by then is
            kept.
    """
    if processes < 1:
        raise WSError(f'expected at least one run at a time, got {processes}')
    idle = [_worker() for _ in range(processes)]
    busy: dict[Future[Record], tuple[ProcessPoolExecutor, Run]] = {}
    tasks = {task.name: task for task in study.tasks}
    try:
        while True:
            under_way = {run.name for _, run in busy.values()}
            ready = [run for run in plan(study, results.done)
                     if run.rate is not None and run.name not in results.done and run.name not in under_way]
            for run, worker in zip(ready, list(idle), strict=False):
                idle.remove(worker)
                busy[worker.submit(job, run, tasks[run.task])] = (worker, run)
            if not busy:
                break
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                worker, run = busy.pop(future)
                idle.append(_worker() if isinstance(future.exception(), BrokenProcessPool) else worker)
                record = _outcome(run, future)
                results.add(record)
                show(run, record)
    finally:  # also when interrupted: nobody waits for what is not kept
        for child in multiprocessing.active_children():
            child.terminate()


def _worker() -> ProcessPoolExecutor:
    """A pool of its own for each, so that a process that dies takes no other run with it."""
    return ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), prepare_process)


def _outcome(run: Run, future: Future[Record]) -> Record:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, WSError) or not isinstance(error, Exception):
        raise error
    message = 'its process died' if isinstance(error, BrokenProcessPool) else f'{type(error).__name__}: {error}'
    return {'name': run.name, 'status': 'crashed', 'message': message[:CLIP], 'metric': None, 'seconds': None,
            'settings': run.settings(), 'validation': [], 'loss': []}

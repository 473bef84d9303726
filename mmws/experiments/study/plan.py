"""Runs of a study, and the choice of their learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Dict

from mmws.experiments.study.schema import Part, Pretraining, Study, Task, config_digest

__all__ = ['Record', 'Run', 'Search', 'choose_rate', 'plan', 'searches']

OPTIONAL = ('points', 'subset', 'start', 'pretraining')

Record = Dict[str, Any]
"""Result of a run: settings, status, curves. The status is ``finished``, ``diverged`` or ``crashed``."""


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    method: str
    ws: Mapping[str, Any]  # options of the method
    schedule: str
    batch_size: int
    seed: int  # of the weights and of the order of the images
    rate: float | None  # None until the runs that choose it are done
    search: bool  # only for the choice of the learning rate, not reported
    config: str
    images: int
    warm_up: int
    validations: int
    points: tuple[float, ...] = ()
    subset: str = ''
    start: str = ''  # of STARTS
    pretraining: Pretraining | None = None

    @property
    def name(self) -> str:
        """Unique name in the study."""
        end = f'rate {self.rate:g}' if self.search else f'seed {self.seed}'
        return f'{self.task}, {self.method}, {self.schedule}, batch {self.batch_size}, {end}'

    @property
    def steps(self) -> int:
        """Number of updates."""
        return max(1, round(self.images / self.batch_size))

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the result; what has its default is left out, as in older results."""
        settings = {name: value for name, value in asdict(self).items() if name not in OPTIONAL or value}
        return {**settings, 'steps': self.steps, 'digest': config_digest(self.config)}


@dataclass(frozen=True)
class Search:
    """Search for a learning rate."""

    batch_size: int
    rates: tuple[float, ...]  # candidates
    runs: list[Run]  # one for each candidate; empty if there is a single candidate


def plan(study: Study, done: Mapping[str, Record]) -> list[Run]:
    """Return the runs of a study in order, searches first; the records in ``done`` determine the learning rates."""
    return [run for task in study.tasks for part in task.parts for run in _runs(study, task, part, done)]


def _runs(study: Study, task: Task, part: Part, done: Mapping[str, Record]) -> Iterator[Run]:
    runs = [Run(task.name, method, study.methods[method], schedule, batch_size, study.rate_seed, None, search=False,
                config=task.config, images=task.images, warm_up=task.warm_up, validations=task.validations,
                points=task.points, subset=task.subset, start=study.starts.get(method, ''),
                pretraining=task.pretraining if method in study.starts else None)
            for batch_size, schedule, method in product(part.batch_sizes, part.schedules, part.methods)]
    for run in runs if not task.rates_of else ():
        yield from _search(study, part, run, done).runs
    for seed, run in product(task.seeds or study.seeds, runs):
        yield replace(run, seed=seed, rate=choose_rate(study, task, run, done))


def _search(study: Study, part: Part, run: Run, done: Mapping[str, Record]) -> Search:
    """Return the search at the batch size of ``run``, with further candidates where the best one is at an end."""
    rates = sorted(part.rates)
    if len(rates) < 2:
        return Search(run.batch_size, part.rates, [])

    def runs() -> list[Run]:
        return [replace(run, seed=study.rate_seed, rate=rate, search=True) for rate in rates]

    for _ in range(part.widen):
        best = _best([done.get(other.name) for other in runs()])
        if best == rates[0]:
            rates.insert(0, _rounded(rates[0] ** 2 / rates[1]))
        elif best == rates[-1]:
            rates.append(_rounded(rates[-1] ** 2 / rates[-2]))
        else:
            break
    return Search(run.batch_size, tuple(rates), runs())


def _best(records: Sequence[Record | None]) -> float | None:
    """Return the rate of the best finished run, of equal ones the smallest; None if none finished or one is missing."""
    finished = [record for record in records if record and record['status'] == 'finished']
    if None in records or not finished:
        return None
    best = max(finished, key=lambda record: (record['metric'], -record['settings']['rate']))
    return float(best['settings']['rate'])


def _rounded(rate: float) -> float:
    return float(f'{rate:.2g}')


def searches(study: Study, task: Task, run: Run, done: Mapping[str, Record]) -> list[Search]:
    """Return the searches that can give the learning rate of a run, the one at the most similar batch size first."""
    source = next((other for other in study.tasks if other.name == task.rates_of), task)
    found = [_search(study, part, replace(run, task=source.name, batch_size=size), done)
             for part in source.parts if part.rates and run.method in part.methods and run.schedule in part.schedules
             for size in part.batch_sizes if size <= run.batch_size]
    return sorted(found, key=lambda search: -search.batch_size)


def choose_rate(study: Study, task: Task, run: Run, done: Mapping[str, Record]) -> float | None:
    """Return the learning rate with the best last validation; None if its search is not done yet.

    The search is that of the method at the batch size of the run. If it is missing or all its runs failed, the search
    at the next smaller batch size counts, and the rate is scaled in proportion to the batch size. Of rates with equal
    metrics the smallest wins. If all runs of all searches failed, the result is the smallest rate.
    """
    found = searches(study, task, run, done)
    for search in found:
        scale = run.batch_size / search.batch_size
        if not search.runs:
            return search.rates[0] * scale
        records = [done.get(other.name) for other in search.runs]
        if None in records:
            return None
        best = _best(records)
        if best is not None:
            return best * scale
    return min(found[0].rates) * run.batch_size / found[0].batch_size

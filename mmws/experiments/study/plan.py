"""The runs that a study comes to, and how each gets its learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from mmws.experiments.study.study import Part, Study, Task, config_digest

__all__ = ['Record', 'Run', 'Searched', 'choose_rate', 'plan', 'searched']

Record = dict[str, Any]
"""What a run came to: its settings, status, curves. Status is ``finished``, ``diverged`` or ``crashed``."""


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        task: its name.
        method: its name.
        ws: the method's options.
        schedule: ``step`` or ``one-cycle``.
        batch_size: images a step.
        seed: of weights and order of the images.
        rate: the learning rate; None where the runs it is chosen from are not done yet.
        search: whether the learning rate is chosen from this run. It is not reported otherwise.
        config: path of the config.
        images: seen in training, in all.
        warm_up: of those, how many go by while the rate rises to its value.
        validations: how often the validation images are gone through.
    """

    task: str
    method: str
    ws: Mapping[str, Any]
    schedule: str
    batch_size: int
    seed: int
    rate: float | None
    search: bool
    config: str
    images: int
    warm_up: int
    validations: int

    @property
    def name(self) -> str:
        """What tells it from the others of the study."""
        what = f'rate {self.rate:g}' if self.search else f'seed {self.seed}'
        return f'{self.task}, {self.method}, {self.schedule}, batch {self.batch_size}, {what}'

    @property
    def steps(self) -> int:
        """As many as show all the images."""
        return max(1, round(self.images / self.batch_size))

    def settings(self) -> dict[str, Any]:
        """Return all that decides its outcome."""
        return asdict(self) | {'steps': self.steps, 'digest': config_digest(self.config)}


def plan(study: Study, done: Mapping[str, Record]) -> list[Run]:
    """Return the runs of the study in the order of their worth: the search for rates, then seed by seed.

    Args:
        study: what is compared.
        done: the runs that are, by name; they decide the learning rates of others.
    """
    return [run for task in study.tasks for part in task.parts for run in _runs(study, task, part, done)]


def _runs(study: Study, task: Task, part: Part, done: Mapping[str, Record]) -> Iterator[Run]:
    cells = list(product(part.batch_sizes, part.schedules, part.methods))
    for batch_size, schedule, method in cells:
        yield from _search(study, task, part, method, schedule, batch_size)
    for seed, (batch_size, schedule, method) in product(study.seeds, cells):
        rate = choose_rate(study, task, method, schedule, batch_size, done)
        yield _run(study, task, method, schedule, batch_size, rate=rate, seed=seed, search=False)


def _run(study: Study, task: Task, method: str, schedule: str, batch_size: int, **rest: Any) -> Run:
    return Run(task.name, method, study.methods[method], schedule, batch_size, config=task.config, images=task.images,
               warm_up=task.warm_up, validations=task.validations, **rest)


def _search(study: Study, task: Task, part: Part, method: str, schedule: str, batch_size: int) -> list[Run]:
    """The runs that the rate is chosen from: none where there is nothing to choose."""
    return [_run(study, task, method, schedule, batch_size, rate=rate, seed=study.rate_seed, search=True)
            for rate in part.rates if len(part.rates) > 1]


@dataclass(frozen=True)
class Searched:
    """Where a learning rate was looked for: at how many images a step, among which, and by which runs."""

    batch_size: int
    rates: tuple[float, ...]
    runs: list[Run]


def searched(study: Study, task: Task, method: str, schedule: str, batch_size: int) -> list[Searched]:
    """Return the searches that a learning rate can come from, the one of the most similar batch first."""
    found = [Searched(size, part.rates, _search(study, task, part, method, schedule, size))
             for part in task.parts if part.rates and method in part.methods and schedule in part.schedules
             for size in part.batch_sizes if size <= batch_size]
    return sorted(found, key=lambda search: -search.batch_size)


def choose_rate(study: Study, task: Task, method: str, schedule: str, batch_size: int,
                done: Mapping[str, Record]) -> float | None:
    """Return the rate of the best last validation, in proportion to the batch size; None if it is not known yet.

    It comes from the method's own search at this batch size or, where there is none or none of its runs finished, at
    the next smaller one, times the ratio of the sizes. Of equal ones the smaller rate is taken. Where no run of any
    search finished, the smallest rate shows that.
    """
    searches = searched(study, task, method, schedule, batch_size)
    for search in searches:
        scale = batch_size / search.batch_size
        if not search.runs:
            return search.rates[0] * scale
        records = [done.get(run.name) for run in search.runs]
        if None in records:
            return None
        finished = [record for record in records if record and record['status'] == 'finished']
        if finished:
            best = max(finished, key=lambda record: (record['metric'], -record['settings']['rate']))
            return float(best['settings']['rate'] * scale)
    return min(searches[0].rates) * batch_size / searches[0].batch_size

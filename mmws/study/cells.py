"""What is compared: the runs of a study over the seeds, together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import mean, stdev

from mmws.study.plan import Record, plan
from mmws.study.results import Results
from mmws.study.study import Study, Task

__all__ = ['Cell', 'cells']


@dataclass(frozen=True)
class Cell:
    """What is compared: a method at a batch size under a schedule, with its runs over the seeds.

    Args:
        method: its name.
        schedule: its name.
        batch_size: images a step.
        records: of the runs that are done.
        out_of: the best value of the metric there is.
    """

    method: str
    schedule: str
    batch_size: int
    records: tuple[Record, ...]
    out_of: float

    @property
    def values(self) -> list[float]:
        """The metric of the runs that finished, in percent."""
        return [record['metric'] / self.out_of * 100 for record in self.records if record['metric'] is not None]

    def failures(self) -> str:
        """Return how many runs diverged and how many crashed."""
        counts = Counter(record['status'] for record in self.records)
        return ', '.join(f'{counts[status]} {status}' for status in ('diverged', 'crashed') if counts[status])

    def result(self) -> str:
        """Return mean and spread of those that finished, and the failures."""
        values = self.values
        spread = f' ± {stdev(values):.1f}' if len(values) > 1 else ''
        parts = [f'{mean(values):.1f}{spread}' if values else '', self.failures()]
        return ', '.join(filter(None, parts))


def cells(study: Study, task: Task, results: Results) -> list[Cell]:
    """Return the cells of a task that have runs, in the order of the study's file."""
    names: dict[tuple[str, str, int], list[Record]] = {}
    for run in plan(study, results.done):
        if run.task == task.name and not run.search and run.name in results.done:
            names.setdefault((run.method, run.schedule, run.batch_size), []).append(results.done[run.name])
    return [Cell(*key, tuple(records), task.out_of) for key, records in names.items()]

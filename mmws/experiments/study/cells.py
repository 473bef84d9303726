"""What is compared: the runs of a study over the seeds, together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import mean, stdev

from mmws.experiments.study.plan import Record, plan
from mmws.experiments.study.results import Results
from mmws.experiments.study.study import SCHEDULES, Study, Task

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
    def setting(self) -> str:
        """Batch size and schedule, in words."""
        return f'{self.batch_size} image{"s"[:self.batch_size > 1]} a step, {self.schedule} schedule'

    @property
    def finished(self) -> list[Record]:
        """The runs that came to a result."""
        return [record for record in self.records if record['status'] == 'finished']

    @property
    def values(self) -> list[float]:
        """The metric of the runs that finished, in percent."""
        return [record['metric'] / self.out_of * 100 for record in self.finished]

    @property
    def spread(self) -> float:
        """The sample standard deviation of the values; 0 of a single one."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def failures(self) -> str:
        """Return how many runs diverged and how many crashed."""
        counts = Counter(record['status'] for record in self.records)
        return ', '.join(f'{counts[status]} {status}' for status in ('diverged', 'crashed') if counts[status])

    def messages(self) -> str:
        """Return what those said, each once."""
        return '; '.join(dict.fromkeys(f'`{record["message"]}`' for record in self.records if record['message']))

    def result(self) -> str:
        """Return mean and spread of those that finished, and the failures."""
        values = self.values
        spread = f' ± {self.spread:.1f}' if len(values) > 1 else ''
        parts = [f'{mean(values):.1f}{spread}' if values else '', self.failures()]
        return ', '.join(filter(None, parts))


def cells(study: Study, task: Task, results: Results) -> list[Cell]:
    """Return the cells of a task that have runs: methods in the order of the study's file, then schedules, sizes."""
    found: dict[tuple[str, str, int], list[Record]] = {}
    for run in plan(study, results.done):
        if run.task == task.name and not run.search and run.name in results.done:
            found.setdefault((run.method, run.schedule, run.batch_size), []).append(results.done[run.name])
    methods = list(study.methods)
    made = [Cell(*key, tuple(records), task.out_of) for key, records in found.items()]
    return sorted(made, key=lambda cell: (
        methods.index(cell.method), SCHEDULES.index(cell.schedule), cell.batch_size))

"""Values in the notes of a study: the notes name a result, and the document has its value."""

from __future__ import annotations

import re

from mmws.errors import WSError, near_matches
from mmws.experiments.study.differences import differences
from mmws.experiments.study.plan import Record, Run, plan
from mmws.experiments.study.results import Results
from mmws.experiments.study.schema import SCHEDULES, Study, Task

__all__ = ['fill', 'outcome']

NAME = re.compile(r'\{(\w+): ([^{}]+)\}')


def fill(text: str, study: Study, results: Results) -> str:
    """Replace each name in braces by the value in percent, or by 'not run'.

    - ``{nuclei: GN+WS}``: mean and spread of the method at batch size 1 in the task nuclei.
    - ``{nuclei: GN+WS at 8}``: the same at batch size 8; ``{nuclei: GN+WS at 8, one-cycle}`` with that schedule.
    - ``{nuclei: GN+WS - GN}``: the difference of two methods, with its interval. GN must be a reference of the study.
    - ``{nuclei: GN+WS, rate 0.04}``: the result of that rate in the search.
    - ``{nuclei: GN+WS, 10%}``: the mean after that fraction of the steps, one of the task's ``points``.

    Raises:
        WSError: if the study has no such task, method or rate.
    """
    values = {f'{task.name}: {name}': value for task in study.tasks
              for name, value in _values(study, task, results).items()}

    def value(match: re.Match[str]) -> str:
        name = match.group()[1:-1]
        if name not in values:
            raise WSError(f'the notes of the study have {match.group()}, which is no result; '
                          + near_matches(name, list(values)))
        return values[name]

    return NAME.sub(value, text)


def _values(study: Study, task: Task, results: Results) -> dict[str, str]:
    runs = [run for run in plan(study, results.done) if run.task == task.name]
    found = {f'{run.method}{_at(run)}, rate {run.rate:g}': outcome(results.done.get(run.name), task)
             for run in runs if run.search}
    methods = {run.method for run in runs}
    found.update((f'{run.method} - {other}{_at(run)}', 'not run') for run in runs for other in methods)
    found.update((f'{run.method}{_at(run)}', 'not run') for run in runs)
    found.update((f'{run.method}{_at(run)}, {point:.0%}', 'not run') for run in runs for point in task.points)
    cells = results.cells(study, task)
    found.update((f'{cell.run.method}{_at(cell.run)}', cell.result()) for cell in cells)
    found.update((f'{cell.run.method}{_at(cell.run)}, {point:.0%}', cell.at(point))
                 for cell in cells for point in task.points)
    found.update((f'{each.method} - {each.reference}{_at(each.run)}',
                  f'{each.mean:+.1f} ({each.low:+.1f} to {each.high:+.1f})')
                 for each in differences(cells, study.references))
    return found


def outcome(record: Record | None, task: Task) -> str:
    """Return the result of one run as text."""
    if record is None:
        return 'not run'
    return record['status'] if record['metric'] is None else f'{record["metric"] / task.out_of * 100:.1f}'


def _at(run: Run) -> str:
    schedule = '' if run.schedule == SCHEDULES[0] else f', {run.schedule}'
    return (f' at {run.batch_size}' if run.batch_size > 1 else '') + schedule

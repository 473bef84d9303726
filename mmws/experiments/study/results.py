"""Raw results of a study, a JSON file per task with a line per run, and their groups over the seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mmws.errors import WSError
from mmws.experiments.study.plan import Record, Run, plan
from mmws.experiments.study.schema import SCHEDULES, Study, Task
from mmws.files import check_output_folder, read_json, write_text

__all__ = ['Cell', 'Results']

RECORD = ('name', 'status', 'message', 'metric', 'seconds', 'settings', 'validation', 'loss')
ABOUT = ('command', 'date', 'machine', 'versions')


@dataclass(frozen=True)
class Cell:
    """Runs that differ only in their seed."""

    run: Run  # one of them
    records: list[Record]  # of those that are done
    out_of: float  # largest value of the metric

    @property
    def setting(self) -> str:
        """Batch size and schedule as text."""
        return f'batch size {self.run.batch_size}, {self.run.schedule} schedule'

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.records if record['status'] == 'finished']

    @property
    def values(self) -> list[float]:
        """Metric of the finished runs in percent."""
        return [record['metric'] / self.out_of * 100 for record in self.finished]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the finished runs."""
        return [record['settings']['seed'] for record in self.finished]

    def at(self, point: float) -> str:
        """Return mean and spread of the validation after a fraction of the steps, as text."""
        step = round(self.run.steps * point)
        values = [dict(map(tuple, record['validation']))[step] / self.out_of * 100 for record in self.finished]
        spread = f' ± {stdev(values):.1f}' if len(values) > 1 else ''
        return f'{mean(values):.1f}{spread}' if values else self.failures()

    def last_gain(self) -> float | None:
        """Return the gain from the last validation but one to the last, in percent points, as a mean over the seeds."""
        gains = [record['validation'][-1][1] - record['validation'][-2][1] for record in self.finished
                 if len(record['validation']) > 1]
        return mean(gains) / self.out_of * 100 if gains else None

    @property
    def spread(self) -> float:
        """Sample standard deviation of the values; 0 for a single value."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def failures(self) -> str:
        """Return the numbers of diverged and of crashed runs as text."""
        counts = Counter(record['status'] for record in self.records)
        return ', '.join(f'{counts[status]} {status}' for status in ('diverged', 'crashed') if counts[status])

    def messages(self) -> str:
        """Return the different messages of the failed runs."""
        return '; '.join(dict.fromkeys(f'`{record["message"]}`' for record in self.records if record['message']))

    def result(self) -> str:
        """Return mean and spread of the finished runs, and the failures, as text."""
        spread = f' ± {self.spread:.1f}' if len(self.values) > 1 else ''
        return ', '.join(filter(None, (f'{mean(self.values):.1f}{spread}' if self.values else '', self.failures())))


class Results:
    """The folder of the raw results, with ``<task>.json`` and ``about.json``; created if missing.

    Attributes:
        done: records by the names of the runs.
        about: versions, machine and command of each start of the study.
    """

    def __init__(self, folder: Path) -> None:
        check_output_folder(folder)
        self.folder = folder
        self.about: list[dict[str, Any]] = _read(folder / 'about.json', ABOUT)
        paths = sorted(path for path in folder.glob('*.json') if path.name != 'about.json')
        self.done: dict[str, Record] = {record['name']: record for path in paths for record in _read(path, RECORD)}

    def add(self, record: Record) -> None:
        """Add a record and save it."""
        self.done[record['name']] = record
        task = record['settings']['task']
        self._write(task, [other for other in self.done.values() if other['settings']['task'] == task])

    def start(self, about: Mapping[str, Any]) -> None:
        """Save the description of the next runs, unless it is saved already."""
        if about not in self.about:
            self.about.append(dict(about))
            self._write('about', self.about)

    def check(self, study: Study) -> None:
        """Raise WSError if a run that is done has other settings than the study."""
        for run in plan(study, self.done):
            expected = json.loads(json.dumps(run.settings()))
            found = self.done.get(run.name, {}).get('settings', expected)
            if run.rate is None:  # the search for it has new candidates
                expected['rate'] = found['rate']
            if found != expected:
                differences = [f'{key} is {found.get(key)!r}, expected {expected[key]!r}'
                               for key in expected if found.get(key) != expected[key]]
                raise WSError(f'{self.folder / run.task}.json: the run "{run.name}" has other settings than the study: '
                              f'{"; ".join(differences)}; delete its line to repeat it, or choose another --out')

    def cells(self, study: Study, task: Task) -> list[Cell]:
        """Return the cells of a task that have records, sorted by method as in the study, schedule and batch size."""
        found: dict[tuple[int, int, int], Cell] = {}
        for run in plan(study, self.done):
            if run.task == task.name and not run.search and run.name in self.done:
                key = list(study.methods).index(run.method), SCHEDULES.index(run.schedule), run.batch_size
                found.setdefault(key, Cell(run, [], task.out_of)).records.append(self.done[run.name])
        return [cell for _, cell in sorted(found.items())]

    def _write(self, name: str, records: list[Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f'{name}.json', '[\n' + ',\n'.join(map(json.dumps, records)) + '\n]\n')


def _read(path: Path, keys: Sequence[str]) -> list[Any]:
    if not path.is_file():
        return []
    try:
        records: list[Any] = read_json(path)
    except WSError as error:
        raise WSError(f'{error}; correct it, or delete it to repeat its runs') from None
    if not isinstance(records, list) or not all(isinstance(one, dict) and set(keys) <= set(one) for one in records):
        raise WSError(f'{path} is not a file of results: expected a list of mappings with the keys {", ".join(keys)}; '
                      'choose another --out, or delete the file')
    return records

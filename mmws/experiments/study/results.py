"""What the runs of a study came to, in files: one a task, one line a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmws.errors import WSError
from mmws.experiments.study.plan import Record, plan
from mmws.experiments.study.study import Study
from mmws.files import check_output_folder

__all__ = ['Results']

RECORD = ('name', 'status', 'message', 'metric', 'seconds', 'settings', 'validation', 'loss')
ABOUT = ('command', 'date', 'machine', 'versions')


class Results:
    """The folder of the raw results.

    Args:
        folder: with ``<task>.json`` and ``about.json``; made if it is not there.

    Attributes:
        done: the records, by the names of the runs.
        about: of each start of the study: versions, machine, command.

    Raises:
        WSError: if a file there cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        check_output_folder(folder)
        self.folder = folder
        self.about: list[dict[str, Any]] = _read(folder / 'about.json', ABOUT)
        paths = sorted(path for path in folder.glob('*.json') if path.name != 'about.json')
        self.done: dict[str, Record] = {record['name']: record for path in paths for record in _read(path)}

    def add(self, record: Record) -> None:
        """Keep a record; the file is replaced in one step, so that it is whole whenever one looks."""
        self.done[record['name']] = record
        task = record['settings']['task']
        self._write(task, [other for other in self.done.values() if other['settings']['task'] == task])

    def start(self, about: Mapping[str, Any]) -> None:
        """Keep what the runs to come belong to, unless it is as before."""
        if about not in self.about:
            self.about.append(dict(about))
            self._write('about', self.about)

    def check(self, study: Study) -> None:
        """Compare the runs that are done with what the study asks for.

        Raises:
            WSError: if one of them has other settings.
        """
        for run in plan(study, self.done):
            kept = self.done.get(run.name)
            settings = json.loads(json.dumps(run.settings()))
            if kept and kept['settings'] != settings:
                found = kept['settings']
                differs = [f'{key} is {found.get(key)!r}, expected {settings[key]!r}'
                           for key in settings if found.get(key) != settings[key]]
                raise WSError(f'{self.folder / run.task}.json: the run "{run.name}" was done with other settings: '
                              f'{"; ".join(differs)}; delete its line there to do it again, or give another --out')

    def _write(self, name: str, records: list[Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f'{name}.json'
        partial = path.with_suffix('.partial')
        partial.write_text('[\n' + ',\n'.join(json.dumps(record) for record in records) + '\n]\n')
        partial.replace(path)


def _read(path: Path, keys: Sequence[str] = RECORD) -> list[Any]:
    if not path.is_file():
        return []
    try:
        records: list[Any] = json.loads(path.read_text())
    except ValueError as error:
        raise WSError(f'{path} is no JSON: {error}; correct it, or delete it to do its runs again') from None
    if not isinstance(records, list) or not all(isinstance(one, dict) and set(keys) <= set(one) for one in records):
        raise WSError(f'{path} is no file of results: expected a list of mappings with the keys {", ".join(keys)}; '
                      'give another --out, or delete it')
    return records

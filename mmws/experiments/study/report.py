"""The document that is made from the raw results of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

from mmws.experiments.study.cells import Cell, cells
from mmws.experiments.study.figures import plot_batches, plot_curves
from mmws.experiments.study.plan import Run, plan, searched
from mmws.experiments.study.results import Results
from mmws.experiments.study.study import Study, Task

__all__ = ['TABLES', 'render', 'write_report']

TABLES = '<!-- tables -->'


def write_report(study: Study, results: Results) -> list[Path]:
    """Write the document beside the folder of the results, and the figures into it.

    ``<folder>_notes.md``, written by hand, is taken over into it as it is: what stands before the line
    :data:`TABLES` in front of the tables, the rest behind them.

    Returns:
        The paths of the files.
    """
    folder = results.folder
    folder.mkdir(parents=True, exist_ok=True)
    figures = [path for task in study.tasks if (found := cells(study, task, results))
               for path in (plot_curves(task, found, folder), plot_batches(task, found, folder)) if path]
    document = folder.with_name(f'{folder.name}.md')
    document.write_text(render(study, results))
    return [document, *figures]


def render(study: Study, results: Results) -> str:
    """Return the document's text."""
    notes = results.folder.with_name(f'{results.folder.name}_notes.md')
    before, _, behind = notes.read_text().partition(TABLES) if notes.is_file() else ('', '', '')
    parts = ['# Normalization at few images a step: results', _about(study, results), before.strip()]
    for task in study.tasks:
        found = cells(study, task, results)
        if found:
            parts += _task(study, task, results, found)
    return '\n\n'.join(filter(None, [*parts, behind.strip()])) + '\n'


def _about(study: Study, results: Results) -> str:
    runs = plan(study, results.done)
    counts = Counter(results.done[run.name]['status'] for run in runs if run.name in results.done)
    hours = sum(record['seconds'] or 0 for record in results.done.values()) / 3600
    lines = [f'Made by `tools/study.py` from the raw results in `{results.folder.name}/*.json`: {len(runs)} runs, of '
             f'which {", ".join(f"{count} {status}" for status, count in sorted(counts.items()))}; '
             f'{hours:.1f} hours of all runs together. Values are in percent: the mean over the seeds '
             f'{", ".join(map(str, study.seeds))} after the last step ± their sample standard deviation. Learning '
             f'rates are chosen on seed {study.rate_seed}, which is not in the means. What diverged or crashed is '
             'counted, not averaged.', '']
    lines += [f'- `{one["command"]}`  \n  {one["date"]}, {one["machine"]}; {one["versions"]}' for one in results.about]
    return '\n'.join(lines).strip()


def _task(study: Study, task: Task, results: Results, found: list[Cell]) -> Iterator[str]:
    yield f'## {task.name.capitalize()}: {task.label}'
    yield (f'`{task.config}`, {task.images:,} images in all whatever their number a step, warm-up over '
           f'{task.warm_up:,} of them.')
    yield _matrix(found)
    yield f'![learning curves]({results.folder.name}/{task.name}_curves.png)'
    if len({cell.batch_size for cell in found}) > 1:
        yield f'![batch sizes]({results.folder.name}/{task.name}_batch.png)'
    yield '### Chosen rates, and time'
    yield _details(study, task, results, found)
    failed = [cell for cell in found if cell.failures()]
    if failed:
        yield '### What did not finish'
        yield '\n'.join(f'- {cell.method}, {cell.setting}: {cell.failures()}, of {len(cell.records)}: {cell.messages()}'
                        for cell in failed)


def _matrix(found: list[Cell]) -> str:
    """A row a method and schedule, a column a batch size."""
    sizes = sorted({cell.batch_size for cell in found})
    results = {(cell.method, cell.schedule, cell.batch_size): cell.result() for cell in found}
    rows = dict.fromkeys((cell.method, cell.schedule) for cell in found)
    return _table(['', 'schedule', *(f'{size} image{"s"[:size > 1]} a step' for size in sizes)],
                  ([method, schedule, *(results.get((method, schedule, size), '') for size in sizes)]
                   for method, schedule in rows))


def _details(study: Study, task: Task, results: Results, found: list[Cell]) -> str:
    def row(cell: Cell) -> list[str]:
        where = cell.method, cell.schedule, cell.batch_size
        seconds = [record['seconds'] for record in cell.finished]
        return [*map(str, where), *_chosen(study, task, results, cell),
                ', '.join(f'{value:.1f}' for value in cell.values), f'{median(seconds):.0f}' if seconds else '']

    return _table(['', 'schedule', 'images a step', 'rate', 'the search for it', 'seed by seed', 'seconds a run'],
                  map(row, found))


def _chosen(study: Study, task: Task, results: Results, cell: Cell) -> list[str]:
    """The learning rate, and what each came to where it was searched; beyond a first or last one may be a better."""
    rate, end, texts = cell.records[0]['settings']['rate'], '', []
    for search in searched(study, task, cell.method, cell.schedule, cell.batch_size):
        scale = cell.batch_size / search.batch_size
        finished = [run for run in search.runs if results.done.get(run.name, {}).get('status') == 'finished']
        if scale > 1:
            texts.append(f'{scale:g} times that of {search.batch_size} a step')
        else:
            texts += [f'{run.rate:g}: {_came_to(run, task, results)}' for run in search.runs]
            end = {min(search.rates): ', the lowest', max(search.rates): ', the highest'}.get(rate, '')
        if finished or not search.runs:
            return [f'{rate:g}{end if finished else ""}', ', '.join(texts)]
    return [f'{rate:g}', ', '.join(texts)]


def _came_to(run: Run, task: Task, results: Results) -> str:
    record = results.done.get(run.name)
    if record is None:
        return 'not run'
    return record['status'] if record['metric'] is None else f'{record["metric"] / task.out_of * 100:.1f}'


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))

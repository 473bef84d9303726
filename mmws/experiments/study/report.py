"""Document and figures of a study, from its raw results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from mmws.experiments.markdown import table
from mmws.experiments.study.differences import differences
from mmws.experiments.study.figures import methods_over_sizes, plot_batches, plot_curves, plot_rates, searched
from mmws.experiments.study.notes import fill, outcome
from mmws.experiments.study.plan import plan, searches
from mmws.experiments.study.results import Cell, Results
from mmws.experiments.study.schema import Study, Task
from mmws.files import write_text

__all__ = ['TABLES', 'render', 'write_report']

TABLES = '<!-- tables -->'


def write_report(study: Study, results: Results) -> list[Path]:
    """Write ``<folder>.md`` beside the folder of the results, and the figures into the folder.

    The document includes ``<folder>_notes.md``, which is written by hand: the text before the line :data:`TABLES` comes
    before the tables, the text after it comes after them. :func:`mmws.experiments.study.notes.fill` inserts values.
    """
    folder = results.folder
    folder.mkdir(parents=True, exist_ok=True)
    figures = [path for task in study.tasks if (found := results.cells(study, task))
               for path in (plot_curves(task, found, folder), plot_batches(study, task, results, folder),
                            plot_rates(task, results, folder)) if path]
    document = folder.with_name(f'{folder.name}.md')
    write_text(document, render(study, results))
    return [document, *figures]


def render(study: Study, results: Results) -> str:
    """Return the text of the document."""
    notes = results.folder.with_name(f'{results.folder.name}_notes.md')
    text = fill(notes.read_text(), study, results) if notes.is_file() else ''
    before, _, after = text.partition(TABLES)
    parts = [f'# {study.title}: results', _about(study, results), before.strip()]
    for task in study.tasks:
        parts += _task(study, task, results)
    return '\n\n'.join(filter(None, [*parts, after.strip()])) + '\n'


def _about(study: Study, results: Results) -> str:
    runs = plan(study, results.done)
    counts = Counter(results.done[run.name]['status'] for run in runs if run.name in results.done)
    hours = sum(record['seconds'] or 0 for record in results.done.values()) / 3600
    states = ', '.join(f'{count} {status}' for status, count in sorted(counts.items()))
    text = (f'Written by `tools/study.py` from the raw results in `{results.folder.name}/*.json`: {len(runs)} runs '
            f'({states}), {hours:.1f} hours of runs, several at a time. Values are percent after the last step: mean ± '
            f'sample standard deviation over the seeds {", ".join(map(str, study.seeds))}. The learning rates are '
            f'chosen with seed {study.rate_seed}, which is not in the means; neither are diverged and crashed runs. '
            'The gain at the end is the last validation minus the one before it.\n\n')
    return text + '\n'.join(f'- `{one["command"]}`  \n  {one["date"]}, {one["machine"]}; {one["versions"]}'
                            for one in results.about)


def _task(study: Study, task: Task, results: Results) -> Iterator[str]:
    found = results.cells(study, task)
    if not found:
        return
    yield f'## {task.name.replace("_", " ").capitalize()}: {task.label}'
    seeds = f' Seed {", ".join(map(str, task.seeds))} only.' if task.seeds else ''
    yield (f'`{task.config}`: {task.images:,} training images at every batch size, with warm-up over the first '
           f'{task.warm_up:,}.{seeds}')
    sizes = sorted({cell.run.batch_size for cell in found})
    by_setting = {(cell.run.method, cell.run.schedule, cell.run.batch_size): cell.result() for cell in found}
    rows = dict.fromkeys((cell.run.method, cell.run.schedule) for cell in found)
    yield table(['', 'schedule', *(f'batch size {size}' for size in sizes)],
                 ([*row, *(by_setting.get((*row, size), '') for size in sizes)] for row in rows))
    if task.points:
        yield 'The same after a fraction of the steps:'
        yield table(['', 'batch size', *(f'{point:.0%}' for point in task.points), '100%'], (
            [cell.run.method, str(cell.run.batch_size), *(cell.at(point) for point in (*task.points, 1))]
            for cell in found))
    yield from _differences(study, found)
    yield f'![learning curves]({results.folder.name}/{task.name}_curves.png)'
    if methods_over_sizes(study, task, results):
        yield f'![metric over the batch size]({results.folder.name}/{task.name}_batch.png)'
    yield '### Learning rates and times'
    if searched(task, results):
        yield f'![training loss and metric over the learning rate]({results.folder.name}/{task.name}_rates.png)'
    yield table(['', 'schedule', 'batch size', 'learning rate', 'search for the rate', 'result of each seed',
                  'gain at the end', 'seconds per run'], (_details(study, task, results, cell) for cell in found))
    failed = [cell for cell in found if cell.failures()]
    if failed:
        yield '### Failed runs'
        yield '\n'.join(f'- {cell.run.method}, {cell.setting}: {cell.failures()} of {len(cell.records)}: '
                        f'{cell.messages()}' for cell in failed)


def _differences(study: Study, cells: Sequence[Cell]) -> Iterator[str]:
    found = differences(cells, study.references)
    if found:
        yield ('Differences in percent points, paired by seed, with their 95% intervals (of twenty intervals about one '
               'misses the true value):')
        yield table(['', 'setting', 'difference', 'interval', 'finding'], (
            [f'{each.method} - {each.reference}', each.setting, f'{each.mean:+.1f}',
             f'{each.low:+.1f} to {each.high:+.1f}', each.text()] for each in found))


def _details(study: Study, task: Task, results: Results, cell: Cell) -> list[str]:
    seconds, gain = [record['seconds'] for record in cell.finished], cell.last_gain()
    return [cell.run.method, cell.run.schedule, str(cell.run.batch_size), *_rate(study, task, results, cell),
            ', '.join(f'{value:.1f}' for value in cell.values), '' if gain is None else f'{gain:+.1f}',
            f'{median(seconds):.0f}' if seconds else '']


def _rate(study: Study, task: Task, results: Results, cell: Cell) -> list[str]:
    """Return the learning rate and its search. The lowest and the highest are marked: a better one may lie beyond."""
    rate, texts = cell.records[0]['settings']['rate'], []
    for search in searches(study, task, cell.run, results.done):
        found = [(run, results.done.get(run.name)) for run in search.runs]
        scale, end = cell.run.batch_size / search.batch_size, ''
        if scale > 1:
            texts.append(f'{scale:g} times the rate at batch size {search.batch_size}')
        elif found:
            texts += [f'{run.rate:g}: {outcome(record, task)}' for run, record in found]
            end = {min(search.rates): ', the lowest', max(search.rates): ', the highest'}.get(rate, '')
        if not found or any(record and record['status'] == 'finished' for _, record in found):
            break
    else:
        end = ''
    return [f'{rate:g}{end}', ', '.join(texts)]

"""Figures of a study, readable in black and white: lines differ in style and marker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmws.experiments.study.plan import Record, searches
from mmws.experiments.study.results import Cell, Results
from mmws.experiments.study.schema import Study, Task
from mmws.files import save_figure

__all__ = ['methods_over_sizes', 'plot_batches', 'plot_curves', 'plot_rates', 'searched']

STYLES: list[dict[str, Any]] = [{'linestyle': line, 'marker': marker, 'color': shade, 'markersize': 4}
                                for shade in ('black', '0.5')
                                for line, marker in zip(('-', '--', '-.', ':'), 'os^D')]
COLUMNS = 5
LAST = 4  # points of a loss curve that count as its end


def plot_curves(task: Task, cells: Sequence[Cell], folder: Path) -> Path:
    """Write training loss and metric over the images seen, as means over the finished runs: two panels per method.

    A line is a batch size with a schedule. The panels of all methods repeat the first cell as a thin line.
    """
    methods = list(dict.fromkeys(cell.run.method for cell in cells))
    figure, pairs = _panels(len(methods), f'{task.label}, percent')
    settings = dict.fromkeys(cell.setting for cell in sorted(cells, key=lambda cell: cell.run.batch_size))
    styles = dict(zip(settings, cycle(STYLES)))
    for method, pair in zip(methods, pairs):
        if method != methods[0]:
            _draw(pair, task, cells[0], f'{methods[0]}, {cells[0].setting}', linewidth=0.8, color='0.6')
        own = [cell for cell in cells if cell.run.method == method]
        for cell in own:
            _draw(pair, task, cell, cell.setting, **styles[cell.setting])
        pair[0].set_title(method, fontsize=10)
        if not any(cell.values for cell in own):
            pair[1].text(0.5, 0.5, '\n'.join(filter(None, (cell.failures() for cell in own))), ha='center',
                         transform=pair[1].transAxes)
    lines = {str(line.get_label()): line for pair in pairs for line in pair[0].get_lines()}
    labels = sorted(lines, key=lambda label: list(styles).index(label) if label in styles else len(styles))
    figure.legend([lines[label] for label in labels], labels, loc='outside lower center', ncols=4, fontsize=8)
    return _save(figure, folder / f'{task.name}_curves.png', f'{task.name}: means over the seeds')


def _panels(count: int, label: str) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Return a figure with ``count`` pairs of axes, for the loss and, below it, for the metric."""
    bands = ceil(count / COLUMNS)
    columns = ceil(count / bands)
    figure = Figure(figsize=(2.4 * columns + 1, 4.4 * bands + 0.8), layout='constrained')
    panels = figure.subplots(2 * bands, columns, sharex=True, squeeze=False)
    pairs = list(zip(panels[::2].flat, panels[1::2].flat))
    for index, (loss, metric) in enumerate(pairs):
        if index:
            loss.sharey(pairs[0][0])
            metric.sharey(pairs[0][1])
        if index % columns == 0:
            loss.set_ylabel('training loss')
            metric.set_ylabel(label)
        if index >= count:
            loss.set_visible(False)
            metric.set_visible(False)
        metric.tick_params(labelbottom=True)
        metric.locator_params(axis='x', nbins=4)
        metric.set_xlabel('images seen')
    return figure, pairs


def _draw(pair: Sequence[Axes], task: Task, cell: Cell, label: str, **style: Any) -> None:
    for axes, curve, scale in zip(pair, ('loss', 'validation'), (1.0, 100 / task.out_of)):
        points = list(zip(*(record[curve] for record in cell.finished)))
        axes.plot([at[0][0] * cell.run.batch_size for at in points],
                  [mean(value for _, value in at) * scale for at in points],
                  label=label, markevery=0.25 if curve == 'loss' else 1, **style)


def methods_over_sizes(study: Study, task: Task, results: Results) -> dict[str, list[Cell]]:
    """Return by method the finished cells with a search for the rate at their own batch size, if at several sizes."""
    found: dict[str, list[Cell]] = {}
    for cell in results.cells(study, task):
        if cell.values and searches(study, task, cell.run, results.done)[0].batch_size == cell.run.batch_size:
            found.setdefault(cell.run.method, []).append(cell)
    return {method: cells for method, cells in found.items() if len({cell.run.batch_size for cell in cells}) > 1}


def plot_batches(study: Study, task: Task, results: Results, folder: Path) -> Path | None:
    """Write the metric over the batch size, with the spread over the seeds: a panel per schedule.

    Return None if no method has several sizes.

    Cells whose learning rate is one of another batch size, scaled, are left out: they would show the scaling.
    """
    compared = methods_over_sizes(study, task, results)
    cells = [cell for own in compared.values() for cell in own]
    if not cells:
        return None
    sizes = sorted({cell.run.batch_size for cell in cells})
    schedules = list(dict.fromkeys(cell.run.schedule for cell in cells))
    figure = Figure(figsize=(1 + 4 * len(schedules), 4), layout='constrained')
    panels = figure.subplots(1, len(schedules), sharey=True, squeeze=False)[0]
    for axes, schedule in zip(panels, schedules):
        for index, (style, (method, own)) in enumerate(zip(cycle(STYLES), compared.items())):
            line = [cell for cell in own if cell.run.schedule == schedule]
            shift = 1.04 ** index  # so that no bar hides another
            axes.errorbar([cell.run.batch_size * shift for cell in line], [mean(cell.values) for cell in line],
                          [cell.spread for cell in line], **style, capsize=3, label=method)
        axes.set_xscale('log', base=2)
        axes.set_xticks(sizes, map(str, sizes))
        axes.set(xlabel='batch size', title=f'schedule: {schedule}')
    panels[0].set_ylabel(f'{task.label}, percent')
    panels[0].legend(fontsize=8)
    return _save(figure, folder / f'{task.name}_batch.png',
                 f'{task.name}, {task.images:,} training images\nbars: standard deviation over seeds')


def searched(task: Task, results: Results) -> dict[str, list[Record]]:
    """Return the finished searches at the smallest batch size: by method, the records from low to high rates."""
    records = [record for record in results.done.values() if record['settings']['task'] == task.name
               and record['settings']['search'] and record['status'] == 'finished']
    smallest = min((record['settings']['batch_size'] for record in records), default=0)
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: float(record['settings']['rate'])):
        settings = record['settings']
        if settings['batch_size'] == smallest and settings['schedule'] == task.parts[0].schedules[0]:
            found.setdefault(settings['method'], []).append(record)
    return {method: own for method, own in found.items() if len(own) > 1}


def plot_rates(task: Task, results: Results, folder: Path) -> Path | None:
    """Write the last training loss and the metric over the learning rate; None without a search."""
    found = searched(task, results)
    if not found:
        return None
    figure = Figure(figsize=(9, 4), layout='constrained')
    panels = figure.subplots(1, 2)
    for style, (method, records) in zip(cycle(STYLES), found.items()):
        rates = [record['settings']['rate'] for record in records]
        panels[0].plot(rates, [mean(value for _, value in record['loss'][-LAST:]) for record in records], **style)
        panels[1].plot(rates, [record['metric'] / task.out_of * 100 for record in records], label=method, **style)
    for axes, label in zip(panels, ('training loss at the end', f'{task.label}, percent')):
        axes.set_xscale('log')
        axes.set(xlabel='learning rate', ylabel=label)
    panels[1].legend(fontsize=8)
    return _save(figure, folder / f'{task.name}_rates.png', f'{task.name}: one seed, which chooses the rates')


def _save(figure: Figure, path: Path, title: str) -> Path:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=90, grey=True)
    return path

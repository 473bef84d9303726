"""The figures of a study, readable in black and white: lines differ in style and marker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmws.study.cells import Cell
from mmws.study.study import Task

__all__ = ['plot_batches', 'plot_curves']

STYLES: list[dict[str, Any]] = [{'linestyle': line, 'marker': marker, 'color': shade}
          for shade in ('black', '0.45') for line, marker in zip(
              ('-', '--', '-.', ':', (0, (5, 1)), (0, (1, 1))), 'os^Dvx', strict=True)]


def plot_curves(task: Task, cells: Sequence[Cell], folder: Path) -> Path:
    """Write training loss and metric over the images seen, a line a method, means over the seeds.

    Shown are the smallest batch size and the first schedule, and the runs that finished.
    """
    size, schedule = min(cell.batch_size for cell in cells), cells[0].schedule
    figure = Figure(figsize=(11, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    shown = [cell for cell in cells if (cell.batch_size, cell.schedule) == (size, schedule)]
    for style, cell in zip(STYLES, shown, strict=False):
        for axes, curve, scale in ((left, 'loss', 1.0), (right, 'validation', 100 / task.out_of)):
            lines = [record[curve] for record in cell.records if record['metric'] is not None]
            points = list(zip(*lines, strict=True))
            axes.plot([at[0][0] * size for at in points], [mean(value for _, value in at) * scale for at in points],
                      **style, label=cell.method, markevery=0.2 if curve == 'loss' else 1, markersize=4)
    left.set(ylabel='training loss')
    right.set(ylabel=f'{task.label}, percent')
    right.legend(fontsize=8)
    return _save(figure, (left, right), 'images seen', folder / f'{task.name}_curves.png',
                 f'{task.name}, {size} image{"s"[:size > 1]} a step, {schedule} schedule; means over seeds')


def plot_batches(task: Task, cells: Sequence[Cell], folder: Path) -> Path | None:
    """Write the metric over the batch size, with the spread over the seeds; None where there is one size alone."""
    rows = dict.fromkeys((cell.method, cell.schedule) for cell in cells)
    lines = {row: [cell for cell in cells if (cell.method, cell.schedule) == row and cell.values] for row in rows}
    lines = {row: line for row, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    figure = Figure(figsize=(6, 4.5), layout='constrained')
    axes = figure.subplots()
    for style, ((method, schedule), line) in zip(STYLES, lines.items(), strict=False):
        sizes = [cell.batch_size for cell in line]
        axes.errorbar(sizes, [mean(cell.values) for cell in line],
                      [stdev(cell.values) if len(cell.values) > 1 else 0 for cell in line], **style, capsize=3,
                      label=method if len({schedule for _, schedule in lines}) == 1 else f'{method}, {schedule}')
    ticks = sorted({cell.batch_size for cell in cells})
    axes.set_xscale('log', base=2)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set(ylabel=f'{task.label}, percent')
    axes.legend(fontsize=8)
    return _save(figure, (axes,), 'images a step', folder / f'{task.name}_batch.png',
                 f'{task.name}, {task.images:,} images in all; bars: standard deviation over seeds')


def _save(figure: Figure, parts: Sequence[Axes], xlabel: str, path: Path, title: str) -> Path:
    for axes in parts:
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100)
    return path

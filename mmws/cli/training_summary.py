"""Summarize a work directory of the toolkit: metrics, curves and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Dict, List

import matplotlib
from matplotlib.figure import Figure
from matplotlib.pyplot import imread
from mmengine.config import Config

from mmws.cli.config import load_config
from mmws.conversion.options import Options
from mmws.errors import WSError, without_prefix
from mmws.files import read_json, save_figure, write_json
from mmws.openmmlab.config_tree import dicts_in
from mmws.openmmlab.toolkits import METRICS

__all__ = ['compare_pictures', 'read_scalars', 'summarize']

Lines = List[Dict[str, Any]]


def summarize(work_dir: str | Path) -> dict[str, Any]:
    """Write ``summary.json``, ``curves.png`` and, if the test saved pictures, ``predictions.png``.

    Args:
        work_dir: of ``tools/train.py`` and ``tools/test.py --show-dir <work_dir>/pictures``.

    Returns:
        The content of ``summary.json``: the metrics of the last test, ``steps``, ``images_per_step`` (images of an
        update: on all GPUs, in all steps whose gradients are accumulated), ``train_seconds`` (training time without
        validation; steps lost in an interruption do not count), ``norm``, ``weight``, ``ws``, which is true for
        ``weight='ws'``, and ``replaced_weights``, if there are any: pretrained weights of the config, and those used.

    Raises:
        WSError: if the folder has no log of a training, or no result of a test.
    """
    work_dir = Path(work_dir)
    training, validation = read_scalars(work_dir)
    config = _config(work_dir)
    summary = {
        **_scores(_last_test(work_dir)),
        'steps': training[-1]['step'], 'images_per_step': _images_per_step(config, work_dir),
        'train_seconds': round(_seconds(training), 1), **_normalization(config), **_replaced_weights(work_dir)}
    write_json(work_dir / 'summary.json', summary, indent=2)
    _plot_curves(training, validation, work_dir / 'curves.png')
    pictures = _pictures(work_dir, 8)
    if pictures:
        _plot_pictures(pictures, work_dir / 'predictions.png')
    return summary


def compare_pictures(work_dirs: Sequence[str | Path], count: int = 6) -> Path:
    """Write ``comparison.png`` to the first work directory: ground truth, and the prediction of each training.

    Args:
        work_dirs: of ``tools/train.py`` and ``tools/test.py --show-dir <work_dir>/pictures``, on the same images.
        count: number of images.

    Raises:
        WSError: if a folder has no pictures, or lacks one that the first has.
    """
    folders = [Path(folder) for folder in work_dirs]
    pictures = _pictures(folders[0], count)
    if not pictures:
        raise WSError(f'{folders[0]} has no pictures; run tools/test.py with --show-dir {folders[0]}/pictures')
    figure = Figure(layout='constrained')
    rows = figure.subplots(len(pictures), len(folders) + 1, squeeze=False)
    for axes, title in zip(rows[0], ['ground truth', *(_method(folder) for folder in folders)]):
        axes.set_title(title, fontsize=16)
    for (truth, *row), picture in zip(rows, pictures):
        for axes, folder in zip(row, folders):
            path = folder / picture.relative_to(folders[0])
            if not path.is_file():
                raise WSError(f'{path} not found; test {folder} on the same images as {folders[0]}')
            both = imread(path)  # the toolkit's picture: ground truth beside prediction
            half = both.shape[1] // 2
            axes.imshow(both[:, half:])
        truth.imshow(both[:, :half])
    for axes in figure.axes:
        axes.axis('off')
    shapes = [axes.images[0].get_array().shape for axes in figure.axes]  # type: ignore[union-attr]
    tallest = max(height / width for height, width, *_ in shapes)
    figure.set_size_inches(4 * rows.shape[1], 4 * tallest * rows.shape[0] + 0.4)
    save_figure(figure, folders[0] / 'comparison.png', dpi=80)
    return folders[0] / 'comparison.png'


def _pictures(work_dir: Path, count: int) -> list[Path]:
    """Return at most ``count`` pictures at equal distances: neighbors may be frames of one video."""
    found = sorted((work_dir / 'pictures').rglob('*.[jp][pn]g'))
    return [found[index * len(found) // count] for index in range(count)] if len(found) > count else found


def _method(work_dir: Path) -> str:
    """Return norm and weight as text, for example GN+WS."""
    found = _normalization(_config(work_dir))
    return '+'.join([found['norm'] or 'no norm', *([found['weight'].upper()] if found['weight'] != 'plain' else [])])


def read_scalars(work_dir: Path) -> tuple[Lines, Lines]:
    """Return the logged lines of training and of validation, in the order of the steps.

    After a resume from an earlier checkpoint, the lines of the later run replace those of the interrupted one.

    Raises:
        WSError: if there are no lines of training, or a log is not valid JSON.
    """
    training: Lines = []
    validation: Lines = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')]
        except ValueError as error:
            raise WSError(f'{path} has a line that is not valid JSON: {error}') from None
        start = min((line['step'] for line in lines if 'loss' in line), default=float('inf'))
        training, validation = ([line for line in kept if line['step'] < start] for kept in (training, validation))
        for line in lines:
            if 'loss' in line:
                training.append(line)
            elif training and METRICS.keys() & line.keys():
                validation.append({**line, 'step': training[-1]['step']})  # the toolkit may log the epoch instead
    if not training:
        raise WSError(f'{work_dir} has no */vis_data/scalars.json with training steps; train there first')
    return training, validation


def _config(work_dir: Path) -> Config:
    dumped = max(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime, default=None)
    if dumped is None:
        raise WSError(f'{work_dir} has no config; training writes one there when it starts')
    return load_config(str(dumped), needs=('model', 'train_dataloader'))


def _images_per_step(config: Config, work_dir: Path) -> int:
    training = [path for path in sorted(work_dir.glob('*/vis_data/scalars.json')) if '"loss"' in path.read_text()]
    logs = ''.join(path.read_text() for path in sorted(training[-1].parents[1].glob('*.log')))
    gpus = re.findall(r'GPU number: (\d+)', logs) or [1]
    accumulated = config.get('optim_wrapper', {}).get('accumulative_counts', 1)
    return int(config.train_dataloader.batch_size * int(gpus[-1]) * accumulated)


def _replaced_weights(work_dir: Path) -> dict[str, dict[str, str]]:
    logs = ''.join(path.read_text() for path in sorted(work_dir.glob('*/*.log')))
    replaced = {old: new for new, old in re.findall(r'using the GN\+WS weights (\S+) instead of ([^\s,]+)', logs)}
    return {'replaced_weights': replaced} if replaced else {}


def _last_test(work_dir: Path) -> dict[str, Any]:
    tests = sorted(path for path in work_dir.glob('*/*.json') if path.stem == path.parent.name)
    if not tests:
        raise WSError(f'{work_dir} has no result of a test; run tools/test.py first')
    return read_json(tests[-1])  # type: ignore[no-any-return]


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the known metrics, from 0 to 1, by their short names."""
    return {metric.name: round(float(metrics[key]) / metric.out_of, 4) for key, metric in METRICS.items()
            if key in metrics}


def _seconds(training: Lines) -> float:
    previous = [0, *(line['step'] for line in training)]
    return float(sum(line['time'] * (line['step'] - step) for line, step in zip(training, previous)))


def _normalization(config: Config) -> dict[str, Any]:
    own = {'norm': 'keep', 'weight': 'plain'}
    if config.model.type.startswith('mmws.'):
        own = {'norm': Options.norm, 'weight': Options.weight, **(config.model.get('ws') or {})}
    configured = (without_prefix(part['norm_cfg'].type, 'mmws.') for _, part in dicts_in(config.model)
                  if part.get('norm_cfg'))
    norm = next(configured, None) if own['norm'] == 'keep' else own['norm']
    return {'norm': norm, 'weight': own['weight'], 'ws': own['weight'] == 'ws'}


def _plot_curves(training: Lines, validation: Lines, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.plot([line['step'] for line in training], [line['loss'] for line in training], color='black')
    left.set(xlabel='step', ylabel='training loss', ylim=(0, None))
    scores = [(line['step'], _scores(line)) for line in validation]
    for metric, style in zip(METRICS.values(), cycle(('-o', '--s'))):
        points = [(step, score[metric.name]) for step, score in scores if metric.name in score]
        if points:
            right.plot(*zip(*points), style, label=metric.label)
    right.set(xlabel='step', ylabel='on the validation images', ylim=(0, 1))
    right.grid(alpha=0.3)
    if validation:
        right.legend()
    save_figure(figure, path, dpi=120)


def _plot_pictures(pictures: list[Path], path: Path) -> None:
    """Draw the toolkit's pictures, ground truth beside prediction, in two columns."""
    figure = Figure(figsize=(16, 4 * (len(pictures) + 1) // 2), layout='constrained')
    for axes, picture in zip(figure.subplots(-(-len(pictures) // 2), 2, squeeze=False).flat, pictures):
        axes.imshow(imread(picture))
        name = without_prefix(picture.name.partition('.')[0], 'test_')
        axes.set_title(f'{name}: ground truth | prediction', fontsize=10)
    for axes in figure.axes:
        axes.axis('off')
    with matplotlib.rc_context({'image.interpolation': 'bilinear'}):
        save_figure(figure, path, dpi=80)

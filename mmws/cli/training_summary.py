"""What a run came to: figures, curves and pictures from a work directory of the toolkit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.pyplot import imread
from mmengine.config import Config

from mmws.cli.config import load_config
from mmws.conversion.options import Options
from mmws.errors import WSError
from mmws.files import read_json

__all__ = ['read_scalars', 'summarize']

METRICS = {'coco/bbox_mAP': 'box_ap', 'coco/segm_mAP': 'mask_ap', 'mIoU': 'miou'}
LABELS = {'box_ap': 'box AP', 'mask_ap': 'mask AP', 'miou': 'mean IoU'}
Lines = list[dict[str, Any]]


def summarize(work_dir: str | Path) -> dict[str, Any]:
    """Write ``summary.json``, ``curves.png`` and, if there are pictures of the test, ``predictions.png``.

    Args:
        work_dir: where ``tools/train.py`` and ``tools/test.py --show-dir <work_dir>/pictures`` wrote.

    Returns:
        What ``summary.json`` holds: the metrics of the last test, ``steps``, ``images_per_step``, ``train_seconds``
        (of the steps that led to the last weights, validation not counted), ``norm``, ``weight`` and ``ws``, whether
        that is ``'ws'``.

    Raises:
        WSError: if no training or no test has written there.
    """
    work_dir = Path(work_dir)
    training, validation = read_scalars(work_dir)
    config = _config(work_dir)
    tested = _last_test(work_dir)
    summary = {short: _value(tested, long) for long, short in METRICS.items() if long in tested} | {
        'steps': training[-1]['step'],
        'images_per_step': config.train_dataloader.batch_size,
        'train_seconds': round(_seconds(training), 1),
    } | _normalization(config)
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    _plot_curves(training, validation, work_dir / 'curves.png')
    pictures = sorted((work_dir / 'pictures').rglob('*.[jp][pn]g'))
    if pictures:
        _plot_pictures(pictures[:8], work_dir / 'predictions.png')
    return summary


def read_scalars(work_dir: Path) -> tuple[Lines, Lines]:
    """Return the logged lines of training and of validation, in the order of the steps.

    Where a run was interrupted and resumed from an earlier checkpoint, the lines of the later run count.

    Raises:
        WSError: if there are none.
    """
    training: Lines = []
    validation: Lines = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')]
        except ValueError as error:
            raise WSError(f'{path} holds a line that is no JSON: {error}') from None
        start = min((line['step'] for line in lines if 'loss' in line), default=float('inf'))
        training, validation = ([line for line in kept if line['step'] < start] for kept in (training, validation))
        for line in lines:
            if 'loss' in line:
                training.append(line)
            elif training and METRICS.keys() & line.keys():
                validation.append(line | {'step': training[-1]['step']})  # the toolkit may have noted the epoch
    if not training:
        raise WSError(f'{work_dir} has no */vis_data/scalars.json with training steps; train there first')
    return training, validation


def _config(work_dir: Path) -> Config:
    dumped = max(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime, default=None)
    if dumped is None:
        raise WSError(f'{work_dir} has no config; it is written there when a training starts')
    return load_config(str(dumped), needs=('model', 'train_dataloader'))


def _last_test(work_dir: Path) -> dict[str, Any]:
    tests = sorted(path for path in work_dir.glob('*/*.json') if path.stem == path.parent.name)
    if not tests:
        raise WSError(f'{work_dir} has no result of a test; run tools/test.py first')
    return read_json(tests[-1])  # type: ignore[no-any-return]


def _seconds(training: Lines) -> float:
    before = [0, *(line['step'] for line in training)]
    spent: list[float] = [line['time'] * (line['step'] - start) for line, start in zip(training, before, strict=False)]
    return sum(spent)


def _normalization(config: Config) -> dict[str, Any]:
    """Which norm the network trained with, what was done to its weights, and whether that was standardization."""
    own = {'norm': 'keep', 'weight': 'plain'}
    if config.model.type.startswith('mmws.'):
        own = {'norm': Options.norm, 'weight': Options.weight} | (config.model.get('ws') or {})
    norm = _first_norm(config.model) if own['norm'] == 'keep' else own['norm']
    return {'norm': norm, 'weight': own['weight'], 'ws': own['weight'] == 'ws'}


def _first_norm(config: Any) -> str | None:
    parts = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    own = config.get('norm_cfg') if isinstance(config, dict) else None
    return own.type.removeprefix('mmws.') if own else next(filter(None, map(_first_norm, parts)), None)


def _value(metrics: dict[str, Any], name: str) -> float:
    """A metric between 0 and 1; mmseg reports percent."""
    return round(float(metrics[name]) / (100 if name == 'mIoU' else 1), 4)


def _plot_curves(training: Lines, validation: Lines, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.plot([line['step'] for line in training], [line['loss'] for line in training], color='black')
    left.set(xlabel='step', ylabel='training loss', ylim=(0, None))
    for (long, short), style in zip(METRICS.items(), ('-o', '--s', '-o'), strict=True):
        points = [(line['step'], _value(line, long)) for line in validation if long in line]
        if points:
            right.plot(*zip(*points, strict=True), style, label=LABELS[short])
    right.set(xlabel='step', ylabel='on the validation images', ylim=(0, 1))
    right.grid(alpha=0.3)
    if validation:
        right.legend()
    figure.savefig(path, dpi=120)


def _plot_pictures(pictures: list[Path], path: Path) -> None:
    """Pairs as the toolkit draws them, ground truth beside prediction, two pairs a row."""
    figure = Figure(figsize=(16, 4 * (len(pictures) + 1) // 2), layout='constrained')
    for axes, picture in zip(figure.subplots(-(-len(pictures) // 2), 2, squeeze=False).flat, pictures, strict=False):
        axes.imshow(imread(picture))
        name = picture.name.partition('.')[0].removeprefix('test_')
        axes.set_title(f'{name}: ground truth | prediction', fontsize=10)
    for axes in figure.axes:
        axes.axis('off')
    with matplotlib.rc_context({'image.interpolation': 'bilinear'}):
        figure.savefig(path, dpi=80)

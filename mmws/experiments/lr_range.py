"""Learning-rate range test: train while the learning rate rises, and find the rates that training can use."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mmengine.config import Config

from mmws.errors import WSError
from mmws.experiments.short_run import LossRecorder, base_rate, short_run
from mmws.files import save_figure, write_json

__all__ = ['measure_lr_ranges', 'plot_lr_ranges', 'usable_range']

SMOOTHING, FALL, RISE, DIVERGED = 0.95, 0.1, 1.5, 4.0


def measure_lr_ranges(configs: Mapping[str, Config], low: float, high: float, steps: int,
                      out: Path) -> dict[str, dict[str, Any]]:
    """Train each config while its learning rate rises from ``low`` to ``high``, and record the loss.

    The rate grows by the same factor after each step (in arXiv 1506.01186 by the same amount). Optimizer, multipliers
    and data are those of the config. A training ends early if the smoothed loss is not finite or exceeds 4 times its
    minimum. The smoothed loss is an exponential moving average with weight 0.95 and bias correction. The keys of
    ``configs`` are the names in the figure. Writes ``lr_range.json``, ``lr_range.png`` and mmengine's logs to ``out``.

    Returns:
        The content of ``lr_range.json``. By name: ``rates``, ``losses`` and ``smoothed`` by step; ``diverged``, the
        rate at the divergence or None; ``usable``, see :func:`usable_range`.
    """
    if not (0 < low < high < math.inf and steps > 1):
        raise WSError('expected a range test from a low to a higher learning rate in 2 steps or more, '
                      f'got {low:g} to {high:g} in {steps}')
    results = {}
    for index, (name, config) in enumerate(configs.items()):
        results[name] = _measure(config, low, high, steps, out / f'run_{index}')
        write_json(out / 'lr_range.json', results, indent=1)
    plot_lr_ranges(results, out / 'lr_range.png')
    return results


def _measure(config: Config, low: float, high: float, steps: int, work_dir: Path) -> dict[str, Any]:
    config = copy.deepcopy(config)
    config.optim_wrapper.optimizer.lr = low
    growth = (high / low) ** (1 / (steps - 1))
    recorder = _RangeRecorder()
    short_run(config, recorder, steps, work_dir,
              [{'type': 'ExponentialLR', 'gamma': growth, 'by_epoch': False, 'begin': 0, 'end': steps}])
    if not recorder.losses:
        raise WSError(f'{config.filename}: the loss of the first step is NaN or infinite')
    return {'low': low, 'high': high, 'steps': steps,
            'rates': recorder.rates, 'losses': recorder.losses, 'smoothed': recorder.smoothed,
            'diverged': recorder.rates[-1] if recorder.diverged else None,
            'usable': usable_range(recorder.rates, recorder.losses, recorder.smoothed)}


class _RangeRecorder(LossRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []  # one more than the losses if the last loss is not finite
        self.smoothed: list[float] = []
        self.diverged = False
        self._average = 0.0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.rates.append(base_rate(runner))
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if len(self.losses) == len(self.rates):
            self._average = SMOOTHING * self._average + (1 - SMOOTHING) * self.losses[-1]
            self.smoothed.append(self._average / (1 - SMOOTHING ** len(self.rates)))
            if self.smoothed[-1] > DIVERGED * min(self.smoothed):
                self.on_divergence(runner, self.losses[-1])

    def on_divergence(self, runner: Any, loss: float) -> None:
        self.diverged = True
        super().on_divergence(runner, loss)


def usable_range(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float]) -> list[float] | None:
    r"""Return the lowest and the highest rate that training can use, None if the loss never fell.

    :math:`L` is the smoothed loss, :math:`L_*` its minimum, and :math:`L_0` the median of the losses in the first tenth
    of the steps, where the rate is too low to matter. The range starts at the first rate from which
    :math:`L \le L_0 - 0.1 (L_0 - L_*)` holds until the minimum. It ends at the last rate before :math:`L > 1.5 L_*`.

    Example:
        >>> usable_range([1, 2, 4, 8, 16], [5, 5, 3, 2, 9], [5, 5, 3, 2, 9])
        [4, 8]
    """
    start, least = statistics.median(losses[:max(len(losses) // 10, 1)]), min(smoothed)
    lowest = smoothed.index(least)
    if not 0 < least < start:
        return None
    fallen = [loss <= start - FALL * (start - least) for loss in smoothed[:lowest + 1]]
    begin = len(fallen) - fallen[::-1].index(False) if False in fallen else 0
    end = next((i for i in range(lowest, len(smoothed)) if smoothed[i] > RISE * least), len(smoothed)) - 1
    return [rates[begin], rates[end]]


def plot_lr_ranges(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the smoothed loss of each result against the rate; the line is thick in the usable range."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    for (name, result), style in zip(results.items(), ['-', '--', '-.', ':'] * len(results)):
        points = list(zip(result['rates'], result['smoothed']))
        low, high = result['usable'] or (math.inf, math.inf)
        usable = [(rate, loss) for rate, loss in points if low <= rate <= high]
        axes.plot(*zip(*points), style, color='black', linewidth=1, label=name)
        axes.plot(*zip(*usable) if usable else ([], []), style, color='black', linewidth=3)
    top = 1.5 * max(max(result['losses'][:5]) for result in results.values())
    axes.set(xscale='log', xlabel='learning rate', ylabel='training loss, smoothed', ylim=(0, top))
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path, dpi=120)

"""Learning-rate range test: which rates a config can train with."""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook

from mmws.errors import WSError
from mmws.experiments.short_run import short_run

__all__ = ['measure_lr_ranges', 'plot_lr_ranges', 'usable_range']

SMOOTHING, FALL, RISE, DIVERGED = 0.95, 0.1, 1.5, 4.0


def measure_lr_ranges(configs: Mapping[str, Config], low: float, high: float, steps: int,
                      out: Path) -> dict[str, dict[str, Any]]:
    """Train each of ``configs`` while its learning rate rises from ``low`` to ``high``, and note the loss.

    The rate grows by the same factor after each step (arXiv 1506.01186, which has it grow by the same amount), with
    the config's own optimizer, multipliers and data. It ends early where the smoothed loss is no number or exceeds
    4 times its minimum. Smoothed is an exponential moving average, of weight 0.95 and corrected for its start.

    Args:
        configs: of any toolkit on mmengine, by the names that they are to have in the figure.
        low, high: rates.
        steps: from the one to the other.
        out: the folder for ``lr_range.json``, ``lr_range.png`` and mmengine's logs.

    Returns:
        What ``lr_range.json`` holds, by name: ``rates``, ``losses`` and ``smoothed`` by step, the rate it ``diverged``
        at, if it did, and what is ``usable``, see :func:`usable_range`.

    Raises:
        WSError: if the rates or the number of steps make no range, or there is no loss at the first.
    """
    if not (0 < low < high < math.inf and steps > 1):
        raise WSError(f'a range test goes from a low to a higher learning rate in 2 steps or more, '
                      f'got {low:g} to {high:g} in {steps}')
    results = {}
    for index, (name, config) in enumerate(configs.items()):
        results[name] = _measure(config, low, high, steps, out / f'run_{index}')
        (out / 'lr_range.json').write_text(json.dumps(results, indent=1) + '\n')
    plot_lr_ranges(results, out / 'lr_range.png')
    return results


def _measure(config: Config, low: float, high: float, steps: int, work_dir: Path) -> dict[str, Any]:
    config = copy.deepcopy(config)
    config.optim_wrapper.optimizer.lr = low
    growth = (high / low) ** (1 / (steps - 1))
    recorder = _Recorder()
    short_run(config, recorder, steps, work_dir,
              [{'type': 'ExponentialLR', 'gamma': growth, 'by_epoch': False, 'begin': 0, 'end': steps}])
    if not recorder.losses:
        raise WSError(f'{config.filename}: the loss of the first step is no number')
    return {'low': low, 'high': high, 'steps': steps,
            'rates': recorder.rates, 'losses': recorder.losses, 'smoothed': recorder.smoothed,
            'diverged': recorder.rates[-1] if recorder.diverged else None,
            'usable': usable_range(recorder.rates, recorder.losses, recorder.smoothed)}


class _Recorder(Hook):  # type: ignore[misc]
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.diverged = False
        self._average = 0.0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        rates = runner.optim_wrapper.get_lr()
        loss = outputs['loss'].item()
        self._average = SMOOTHING * self._average + (1 - SMOOTHING) * loss
        smoothed = self._average / (1 - SMOOTHING ** (len(self.rates) + 1))
        self.rates.append(rates.get('base_lr', rates['lr'])[0])
        if not math.isfinite(loss) or smoothed > DIVERGED * min([smoothed, *self.smoothed]):
            self.diverged = runner.train_loop.stop_training = True
        if math.isfinite(loss):  # JSON has no other numbers; the last rate is then one longer than the losses
            self.losses.append(loss)
            self.smoothed.append(smoothed)


def usable_range(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float]) -> list[float] | None:
    r"""Return the lowest and the highest rate that training can use, None if the loss never fell.

    With :math:`L` the smoothed loss, :math:`L_0` the median of the losses in the first tenth of the steps, where the
    rate is too low to matter, and :math:`L_*` the minimum of :math:`L`: from the rate at which
    :math:`L \le L_0 - 0.1 (L_0 - L_*)` for good until the minimum, to the last one before :math:`L > 1.5 L_*`.

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
    """Draw the smoothed loss of each of ``results`` against the rate, by name; the usable range is the thick part."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    for (name, result), style in zip(results.items(), ['-', '--', '-.', ':'] * len(results), strict=False):
        rates = result['rates'][:len(result['smoothed'])]
        low, high = result['usable'] or (math.inf, math.inf)
        axes.plot(rates, result['smoothed'], style, color='black', linewidth=1, label=name)
        inside = [(rate, loss) for rate, loss in zip(rates, result['smoothed'], strict=True) if low <= rate <= high]
        axes.plot(*zip(*inside, strict=True) if inside else ([], []), style, color='black', linewidth=3)
    axes.set(xscale='log', xlabel='learning rate', ylabel='training loss, smoothed', ylim=(0, _top(results)))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _top(results: Mapping[str, Mapping[str, Any]]) -> float:
    return 1.5 * max(max(result['losses'][:5], default=1.0) for result in results.values())

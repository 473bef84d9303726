"""Distance between the statistics of each batch and the running ones of BatchNorm, in training and in a test."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from torch import Tensor

from mmws.cli.check_data import check_files
from mmws.errors import WSError
from mmws.experiments.short_run import check_interval, short_run, test_runner
from mmws.files import save_figure, write_json
from mmws.ops.torch_compat import BatchNorm

__all__ = ['distances', 'measure_statistics', 'plot_layers', 'plot_statistics']

PANELS = {'shift': '|mean of the batch - running mean| / running std',
          'scale': '|log2(std of the batch / running std)|'}
HIGH = 0.95
TESTS = {'running': 'running statistics', 'batch': 'statistics of each batch'}
WARM_UP = {'type': 'LinearLR', 'start_factor': 0.01, 'by_epoch': False, 'end': 200}


def measure_statistics(configs: Mapping[str, Config], steps: int, every: int, out: Path) -> dict[str, Any]:
    """Train each config with its learning rate, and measure the :func:`distances` every ``every`` steps; then test it.

    The keys of ``configs`` are the names in the figure. Writes ``bn_statistics.json``, ``bn_statistics.png`` and
    mmengine's logs to the folder ``out``.

    Returns:
        The content of ``bn_statistics.json``: ``steps``, ``every``, and by name of the config:

        - ``measured``: for each measured ``step`` the medians ``shift`` and ``scale`` over all channels of all
          BatchNorms, and their quantiles of :data:`HIGH`, ``shift_high`` and ``scale_high``.
        - ``tested``: the first metric of the test with the ``running`` statistics, and with those of each ``batch``.
        - ``layers``: for both tests the median ``shift`` of each BatchNorm's channels, a mean over the batches, in the
          order of execution.

    Raises:
        WSError: if ``steps`` or ``every`` is out of range, a network has no BatchNorm that trains, or the data of a
            test are missing.
    """
    check_interval(steps, every)
    for config in configs.values():
        check_files(config, ('test_dataloader',))
    measured: dict[str, Any] = {}
    tested: dict[str, dict[str, float]] = {}
    layers: dict[str, dict[str, Any]] = {}
    for index, (name, config) in enumerate(configs.items()):
        hook = _StatisticsHook(name, every)
        model = short_run(config, hook, steps, out / f'run_{index}', [dict(WARM_UP)])
        measured[name] = hook.measurements
        tested[name], layers[name] = {}, {}
        for kind in TESTS:
            tested[name][kind], layers[name][kind] = _test(config, model, kind == 'batch', out / f'test_{index}')
    result = {'steps': steps, 'every': every, 'measured': measured, 'tested': tested, 'layers': layers}
    write_json(out / 'bn_statistics.json', result, indent=1)
    plot_statistics(measured, out / 'bn_statistics.png')
    plot_layers(layers, out / 'bn_layers.png')
    return result


class _StatisticsHook(Hook):  # type: ignore[misc]
    def __init__(self, name: str, every: int) -> None:
        self.name, self.every = name, every
        self.measurements: list[dict[str, Any]] = []
        self._found: list[tuple[Tensor, Tensor]] | None = None

    def before_train(self, runner: Any) -> None:
        for module in runner.model.modules():
            if isinstance(module, BatchNorm) and module.track_running_stats:
                module.register_forward_pre_hook(self._observe)

    def _observe(self, module: Any, arguments: tuple[Tensor, ...]) -> None:
        if module.training and self._found is not None:
            self._found.append(distances(module, arguments[0]))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._found = [] if batch_idx % self.every == 0 else None

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._found == []:
            raise WSError(f'{self.name}: no BatchNorm ran in training mode; for a type with the mmws. prefix add '
                          '--cfg-options model.ws.norm=keep model.ws.weight=plain')
        if self._found:
            measured: dict[str, Any] = {'step': batch_idx}
            for name, each in zip(PANELS, zip(*self._found)):
                middle, high = torch.cat(each).quantile(torch.tensor([0.5, HIGH])).tolist()
                measured.update({name: round(middle, 4), f'{name}_high': round(high, 4)})
            self.measurements.append(measured)
        self._found = None


class _LayersHook(Hook):  # type: ignore[misc]
    """Record the median ``shift`` of each BatchNorm for each batch of a test."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}  # by name of the module

    def before_test(self, runner: Any) -> None:
        for name, module in runner.model.named_modules():
            if isinstance(module, BatchNorm) and module.track_running_stats:
                module.register_forward_pre_hook(partial(self._observe, name))

    def _observe(self, name: str, module: Any, arguments: tuple[Tensor, ...]) -> None:
        self.found.setdefault(name, []).append(distances(module, arguments[0])[0].median().item())


class _BatchStatisticsHook(Hook):  # type: ignore[misc]
    """Let each BatchNorm use the statistics of the batch in a test, and keep the running ones."""

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        for module in runner.model.modules():
            if isinstance(module, BatchNorm):
                module.train()
                module.momentum = 0.0


def _test(config: Config, model: torch.nn.Module, of_the_batch: bool,
          work_dir: Path) -> tuple[float, list[dict[str, Any]]]:
    """Test a trained model; return the first metric and the mean ``shift`` of each BatchNorm over the batches."""
    runner = test_runner(config, work_dir)
    runner.model.load_state_dict(model.state_dict())
    if of_the_batch:
        runner.register_hook(_BatchStatisticsHook())
    layers = _LayersHook()
    runner.register_hook(layers)
    metric = round(float(next(iter(runner.test().values()), 0.0)), 5)
    return metric, [{'layer': name, 'shift': round(mean(values), 4)} for name, values in layers.found.items()]


@torch.no_grad()
def distances(norm: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the distance of the statistics of a batch from the running ones, for each channel.

    With mean :math:`\mu`, variance :math:`\sigma^2` of the batch and :math:`\hat\mu`, :math:`\hat\sigma^2` the running
    ones: :math:`\lvert \mu - \hat\mu \rvert / \hat\sigma` is how far the norm's output for these images would move if
    it used the running statistics, in standard deviations. :math:`\lvert \log_2(\sigma / \hat\sigma) \rvert` is how
    much it would scale.

    Args:
        norm: a BatchNorm with running statistics.
        x: its input, (N, C, ...).

    Returns:
        Two tensors (C,).

    Example:
        >>> norm = torch.nn.BatchNorm2d(1, eps=0)
        >>> x = torch.tensor([1.0, 5.0]).view(1, 1, 1, 2)  # mean 3, standard deviation 2; the running ones are 0 and 1
        >>> [each.item() for each in distances(norm, x)]
        [3.0, 1.0]
    """
    dims = [0, *range(2, x.dim())]
    running = (norm.running_var + norm.eps).sqrt()
    std = (x.var(dims, unbiased=False) + norm.eps).sqrt()
    return (x.mean(dims) - norm.running_mean).abs() / running, (std / running).log2().abs()


def plot_statistics(measured: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the quantiles of :data:`HIGH` over the steps: a dot for each step, a line for the running mean of nine."""
    figure = Figure(figsize=(9, 4), layout='constrained')
    panels = figure.subplots(1, 2)
    for (name, points), line, shade in zip(measured.items(), cycle(['-', '--', '-.', ':']),
                                           cycle(['black', '0.5'])):
        for axes, key in zip(panels, PANELS):
            values = torch.tensor([point[f'{key}_high'] for point in points])
            smooth = [values[max(0, i - 4):i + 5].mean().item() for i in range(len(values))]
            steps = [point['step'] for point in points]
            axes.plot(steps, values, '.', color=shade, markersize=2)
            axes.plot(steps, smooth, line, color=shade, label=name)
    for axes, label in zip(panels, PANELS.values()):
        axes.set(xlabel='step', ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(f'{HIGH:.0%} of the channels are below', fontsize=10)
    save_figure(figure, path, dpi=120)


def plot_layers(layers: Mapping[str, Mapping[str, list[dict[str, Any]]]], path: Path) -> None:
    """Draw the median ``shift`` of each BatchNorm in both tests; the layers in the order of execution."""
    figure = Figure(figsize=(9, 4), layout='constrained')
    axes = figure.subplots()
    for (name, tests), color in zip(layers.items(), cycle(['black', '0.5'])):
        for (kind, label), line in zip(TESTS.items(), ('-', '--')):
            axes.plot([layer['shift'] for layer in tests[kind]], line, color=color, label=f'{name}, {label}')
    axes.set(xlabel='BatchNorm, in the order of execution', ylabel=PANELS['shift'], ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle('median channel in a test, mean over the batches', fontsize=10)
    save_figure(figure, path, dpi=120)

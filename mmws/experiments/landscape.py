"""Smoothness of the loss along the gradient during a training; compares configs."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmws.errors import WSError
from mmws.experiments.short_run import base_rate, check_interval, short_run
from mmws.files import save_figure, write_json
from mmws.openmmlab.mmengine_compat import run_forward

__all__ = ['MULTIPLES', 'measure_landscape', 'plot_landscapes', 'probe']

MULTIPLES = (0.5, 1.0, 2.0, 3.0, 4.0)
"""Step sizes as multiples of the learning rate; arXiv 1805.11604 uses 1/2 to 4 too."""

PANELS = {'losses': 'training loss along the gradient', 'gradient_changes': 'change of the gradient',
          'beta': 'effective smoothness', 'lipschitz': 'effective Lipschitz constant'}


def measure_landscape(configs: Mapping[str, Config], steps: int, every: int, out: Path) -> dict[str, Any]:
    """Train each config with its learning rate, kept constant, and :func:`probe` the loss every ``every`` steps.

    The keys of ``configs`` are the names in the figure. The first measurement is before the first step. Writes
    ``landscape.json``, ``landscape.png`` and mmengine's logs to the folder ``out``.

    Returns:
        The content of ``landscape.json``: ``multiples``, ``steps``, ``every`` and, in ``measured`` by name, the
        measurements, each with its ``step``.
    """
    check_interval(steps, every)
    measured = {}
    for index, (name, config) in enumerate(configs.items()):
        hook = _ProbeHook(every)
        short_run(config, hook, steps, out / f'run_{index}', [])
        measured[name] = hook.measurements
    result = {'multiples': MULTIPLES, 'steps': steps, 'every': every, 'measured': measured}
    write_json(out / 'landscape.json', result, indent=1)
    plot_landscapes(measured, out / 'landscape.png')
    return result


class _ProbeHook(Hook):  # type: ignore[misc]
    """Measure before the step, because the step changes the batch in place."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.measurements: list[dict[str, Any]] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx % self.every == 0:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            self.measurements.append({'step': batch_idx, **probe(model, data_batch, base_rate(runner))})


def probe(model: nn.Module, batch: Any, rate: float) -> dict[str, Any]:
    r"""Measure the loss of ``batch`` along its gradient; see arXiv 1805.11604 and 1903.10520, section on smoothness.

    With :math:`x` the trainable parameters, :math:`g = \nabla L(x)` and step sizes :math:`a` from
    :data:`MULTIPLES` of the learning rate:

    .. math:: L(x - a g), \qquad \lVert g - \nabla L(x - a g) \rVert, \qquad
        \beta = \max_a \frac{\lVert g - \nabla L(x - a g) \rVert}{\lVert a g \rVert}, \qquad
        \ell = \max_a \frac{\lvert L(x) - L(x - a g) \rvert}{\lVert a g \rVert}

    are the loss and the change of the gradient along it, the effective smoothness and the effective Lipschitz constant.
    The measurement runs on a copy of the model, with the same random numbers at each point. The training does not
    change: weights, buffers, random generators and batch stay as they are. ``model`` is in training mode, ``batch`` is
    from the data loader, ``rate`` is the learning rate.

    Returns:
        ``loss``, ``gradient_norm``, ``beta`` and ``lipschitz``; ``losses`` and ``gradient_changes`` by step size.

    Raises:
        WSError: if the gradient is zero or not finite.
    """
    model = copy.deepcopy(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in parameters]
    loss, gradient = _loss_and_gradient(model, parameters, batch)
    length = _norm(gradient)
    if not 0 < length < math.inf:
        raise WSError(f'the gradient of the loss ({loss:g}) has the length {length:g}; expected a positive number. If '
                      'the training diverged, lower its learning rate')
    losses, changes = [], []
    for multiple in MULTIPLES:
        with torch.no_grad():
            for parameter, origin, direction in zip(parameters, start, gradient):
                parameter.copy_(origin - multiple * rate * direction)
        new_loss, new_gradient = _loss_and_gradient(model, parameters, batch)
        losses.append(new_loss)
        changes.append(_norm([a - b for a, b in zip(gradient, new_gradient)]))
    lengths = [multiple * rate * length for multiple in MULTIPLES]
    return {'loss': loss, 'losses': losses, 'gradient_norm': length, 'gradient_changes': changes,
            'beta': max(change / step for change, step in zip(changes, lengths)),
            'lipschitz': max(abs(new_loss - loss) / step for new_loss, step in zip(losses, lengths))}


def _loss_and_gradient(model: Any, parameters: Sequence[Tensor], batch: Any) -> tuple[float, list[Tensor]]:
    """Compute them as ``train_step`` of the model does, but without mixed precision."""
    with _same_random_numbers():
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        loss, _ = model.parse_losses(run_forward(model, data, mode='loss'))
    gradient = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.item(), [torch.zeros_like(of) if part is None else part for part, of in zip(gradient, parameters)]


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore the state of the random generators after the block."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(arrays)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])))


def plot_landscapes(measured: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw by name the ranges of loss and gradient change over the step sizes, and the two constants."""
    figure = Figure(figsize=(13, 7), layout='constrained')
    for axes, (key, text) in zip(figure.subplots(2, 2).flat, PANELS.items()):
        for (name, points), style, hatch in zip(measured.items(), ('-', '--', '-.', ':'), ('///', '...', '', '++')):
            steps = [point['step'] for point in points]
            values = [np.atleast_1d(point[key]) for point in points]
            low, high = [value.min() for value in values], [value.max() for value in values]
            axes.plot(steps, high, style, color='black', label=name)
            if low != high:
                axes.fill_between(steps, low, high, facecolor='none', edgecolor='gray', hatch=hatch, linewidth=0)
                axes.plot(steps, low, style, color='black', linewidth=0.7)
        axes.set(xlabel='step', ylabel=text, yscale='log')
        axes.legend()
        axes.grid(alpha=0.3)
    save_figure(figure, path, dpi=120)

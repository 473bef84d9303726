"""How smooth the loss is along the gradient, while a network trains: with Weight Standardization and without."""

from __future__ import annotations

import copy
import json
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
from mmws.experiments.short_run import short_run

__all__ = ['MULTIPLES', 'measure_landscape', 'plot_landscapes', 'probe']

MULTIPLES = (0.5, 1.0, 2.0, 3.0, 4.0)
"""The step sizes, as multiples of the learning rate; those of arXiv 1805.11604 run from 1/2 to 4 too."""


def measure_landscape(configs: Mapping[str, Config], steps: int, every: int, out: Path) -> dict[str, Any]:
    """Train each of ``configs`` for ``steps`` at its own learning rate, kept constant, and :func:`probe` along the way.

    Args:
        configs: by the names that they are to have in the figure.
        steps: of each training.
        every: a measurement each so many steps, the first before the first step.
        out: the folder for ``landscape.json``, ``landscape.png`` and mmengine's logs.

    Returns:
        What ``landscape.json`` holds: ``multiples`` and, by name, the measurements, each with its ``step``.

    Raises:
        WSError: if the numbers of steps make no measurement.
    """
    if not 0 < every <= steps:
        raise WSError(f'expected a measurement every 1 to {steps} steps, got every {every}')
    measured = {}
    for index, (name, config) in enumerate(configs.items()):
        hook = _Prober(every)
        short_run(config, hook, steps, out / f'run_{index}', [])
        measured[name] = hook.measurements
    result = {'multiples': MULTIPLES, 'steps': steps, 'every': every, 'measured': measured}
    (out / 'landscape.json').write_text(json.dumps(result, indent=1) + '\n')
    plot_landscapes(measured, out / 'landscape.png')
    return result


class _Prober(Hook):  # type: ignore[misc]
    """Before the step, since the step changes the batch in place."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.measurements: list[dict[str, Any]] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx % self.every == 0:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            rates = runner.optim_wrapper.get_lr()
            self.measurements.append({'step': batch_idx} | probe(
                model, data_batch, rates.get('base_lr', rates['lr'])[0]))


def probe(model: nn.Module, batch: Any, rate: float) -> dict[str, Any]:
    r"""Measure the loss of ``batch`` along its gradient; see arXiv 1805.11604 and 1903.10520, section on smoothness.

    With :math:`x` the parameters that train, :math:`g = \nabla L(x)` and step sizes :math:`a` from
    :data:`MULTIPLES` of the learning rate:

    .. math:: L(x - a g), \qquad \lVert g - \nabla L(x - a g) \rVert, \qquad
        \beta = \max_a \frac{\lVert g - \nabla L(x - a g) \rVert}{\lVert a g \rVert}, \qquad
        \ell = \max_a \frac{\lvert L(x) - L(x - a g) \rvert}{\lVert a g \rVert}

    are the loss and the change of the gradient along the way, the effective smoothness and the effective Lipschitz
    constant. A copy of the model does all this, with the same random numbers at each point, so that nothing of the
    training changes: weights, buffers, random numbers, the batch.

    Args:
        model: of a toolkit, in training mode.
        batch: as the data loader gives it.
        rate: the learning rate.

    Returns:
        ``loss``, and over the step sizes ``losses`` and ``gradient_changes``; ``gradient_norm``, ``beta``,
        ``lipschitz``.

    Raises:
        WSError: if the gradient is zero or no number.
    """
    twin = copy.deepcopy(model)
    parameters = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in parameters]
    loss, gradient = _loss_and_gradient(twin, parameters, batch)
    length = _norm(gradient)
    if not 0 < length < math.inf:
        raise WSError(f'the gradient of the loss ({loss:g}) has the length {length:g}, along which there is nothing to '
                      'measure; has the training diverged? Lower its learning rate')
    losses, changes = [], []
    for multiple in MULTIPLES:
        with torch.no_grad():
            for parameter, origin, direction in zip(parameters, start, gradient, strict=True):
                parameter.copy_(origin - multiple * rate * direction)
        there, gradient_there = _loss_and_gradient(twin, parameters, batch)
        losses.append(there)
        changes.append(_norm([a - b for a, b in zip(gradient, gradient_there, strict=True)]))
    lengths = [multiple * rate * length for multiple in MULTIPLES]
    return {'loss': loss, 'losses': losses, 'gradient_norm': length, 'gradient_changes': changes,
            'beta': max(change / step for change, step in zip(changes, lengths, strict=True)),
            'lipschitz': max(abs(there - loss) / step for there, step in zip(losses, lengths, strict=True))}


def _loss_and_gradient(model: Any, parameters: Sequence[Tensor], batch: Any) -> tuple[float, list[Tensor]]:
    """As the model's own ``train_step`` computes them, but for mixed precision."""
    with _same_random_numbers():
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
    gradient = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = zip(gradient, parameters, strict=True)
    return loss.item(), [torch.zeros_like(like) if grad is None else grad for grad, like in filled]


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """A block after which the generators are where they were before it."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(arrays)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])))


def plot_landscapes(measured: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw for each name the ranges of loss and gradient change over the step sizes, and the two constants."""
    figure = Figure(figsize=(13, 7), layout='constrained')
    panels = figure.subplots(2, 2).flat
    texts = ('training loss along the gradient', 'change of the gradient', 'effective smoothness',
             'effective Lipschitz constant')
    for (axes, text), key in zip(zip(panels, texts, strict=True), ('losses', 'gradient_changes', 'beta', 'lipschitz'),
                                 strict=True):
        for (name, lines), style, hatch in zip(measured.items(), ('-', '--', '-.', ':'), ('///', '...', '', '++'),
                                               strict=False):
            steps = [line['step'] for line in lines]
            values = [np.atleast_1d(line[key]) for line in lines]
            low, high = [value.min() for value in values], [value.max() for value in values]
            axes.plot(steps, high, style, color='black', label=name)
            if low != high:
                axes.fill_between(steps, low, high, facecolor='none', edgecolor='gray', hatch=hatch, linewidth=0)
                axes.plot(steps, low, style, color='black', linewidth=0.7)
        axes.set(xlabel='step', ylabel=text, yscale='log')
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)

"""Where in a step of training the first value comes up that is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ['diagnose', 'is_finite', 'some']


def diagnose(model: Any, batch: Any) -> str:
    """Pass a batch through the model once more, forward and, where that is finite, backward.

    Args:
        model: has mmengine's ``data_preprocessor`` and ``parse_losses``; its gradients are lost, its weights are not
            touched.
        batch: what its data loader gave.

    Returns:
        A sentence: the losses, and the layer, the function or the images that values stop being finite at.
    """
    model.zero_grad()
    data = model.data_preprocessor(batch, True)
    if not is_finite(data.get('inputs')):
        files = [getattr(sample, 'img_path', '?') for sample in data.get('data_samples') or ()]
        return f'the images are not finite: {some(files)}'
    with _watched(model) as (ran, guilty):
        loss, parts = model.parse_losses(model._run_forward(data, mode='loss'))
    losses = ', '.join(f'{name} {float(value.detach()):.4g}' for name, value in parts.items() if 'loss' in name)
    if guilty or not is_finite(loss):
        return f'the loss is not finite ({losses}); the first values that are not come from {(guilty or ["it"])[0]}'
    loss.backward()
    last_first = ((name, model.get_submodule(name).parameters()) for name in ran[::-1])
    back_from = next((name for name, weights in last_first if not is_finite([weight.grad for weight in weights])), None)
    where = f'back from {back_from}' if back_from else 'it comes from an earlier batch of the update or another process'
    return f'the loss is finite ({losses}), its gradient is not: {where}'


def is_finite(value: Any) -> bool:
    """Return whether no tensor in ``value``, which may nest them, has a NaN or an infinity.

    Example:
        >>> import torch
        >>> is_finite([torch.ones(2), {'a': torch.tensor(float('nan'))}])
        False
    """
    return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def some(names: list[str]) -> str:
    """Return the first of the names, and how many more there are.

    Example:
        >>> some(['a', 'b', 'c', 'd', 'e'])
        'a, b, c and 2 more'
    """
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


@contextmanager
def _watched(model: nn.Module) -> Iterator[tuple[list[str], list[str]]]:
    """Yield what the next pass fills: names of layers as they run, and those that make such values of finite ones."""
    ran: list[str] = []
    guilty: list[str] = []

    def look(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        ran.append(name)
        if not is_finite(output) and is_finite(inputs):
            spoilt = [key for key, value in layer.state_dict().items() if not is_finite(value)]
            guilty.append(f'{name} ({type(layer).__name__})' + (f', whose {some(spoilt)} is not' if spoilt else ''))

    handles = [layer.register_forward_hook(partial(look, name)) for name, layer in model.named_modules() if name]
    try:
        yield ran, guilty
    finally:
        for handle in handles:
            handle.remove()

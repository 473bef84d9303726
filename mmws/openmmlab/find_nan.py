"""Find the layer that produces the first NaN or Inf."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmws.openmmlab.mmengine_compat import run_forward
from mmws.ops.torch_compat import tree_leaves

__all__ = ['find_nan', 'first_three', 'is_finite']


def find_nan(model: Any, batch: Any) -> str:
    """Run a batch through the model again, forward and, if the loss is finite, backward.

    Args:
        model: an mmengine model with ``data_preprocessor`` and ``parse_losses``. Its gradients are reset, its weights
            do not change.
        batch: from the data loader.

    Returns:
        A sentence with the losses and the source of the first NaN or Inf: a layer, the loss or the images.
    """
    model.zero_grad()
    data = model.data_preprocessor(batch, True)
    if not is_finite(data.get('inputs')):
        files = [getattr(sample, 'img_path', '?') for sample in data.get('data_samples') or ()]
        return f'the images contain NaN or Inf: {first_three(files)}'
    with _recorded_layers(model) as (executed, culprits):
        loss, parts = model.parse_losses(run_forward(model, data, 'loss'))
    losses = ', '.join(f'{name} {float(value.detach()):.4g}' for name, value in parts.items() if 'loss' in name)
    if culprits or not is_finite(loss):
        source = culprits[0] if culprits else 'the loss itself'
        return f'the loss is not finite ({losses}); the first NaN or Inf comes from {source}'
    loss.backward()
    gradients = ((name, [weight.grad for weight in model.get_submodule(name).parameters()]) for name in executed[::-1])
    layer = next((name for name, values in gradients if not is_finite(values)), None)
    source = f'backward from {layer}' if layer else 'an earlier accumulated batch, or another process, caused it'
    return f'the loss is finite ({losses}), its gradient is not: {source}'


def is_finite(value: Any) -> bool:
    """Return whether all tensors in ``value``, nested or not, are free of NaN and Inf.

    Example:
        >>> import torch
        >>> is_finite([torch.ones(2), {'a': torch.tensor(float('nan'))}])
        False
    """
    return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def first_three(names: list[str]) -> str:
    """Return the first three names and the number of the others.

    Example:
        >>> first_three(['a', 'b', 'c', 'd', 'e'])
        'a, b, c and 2 more'
    """
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


@contextmanager
def _recorded_layers(model: nn.Module) -> Iterator[tuple[list[str], list[str]]]:
    """Yield two lists that a forward pass fills: the layers as they run, and those that produce NaN or Inf."""
    executed: list[str] = []
    culprits: list[str] = []

    def record(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        executed.append(name)
        if not is_finite(output) and is_finite(inputs):
            bad = [key for key, value in layer.state_dict().items() if not is_finite(value)]
            weights = f', NaN or Inf in its {first_three(bad)}' if bad else ''
            culprits.append(f'{name} ({type(layer).__name__}){weights}')

    with ExitStack() as hooks:
        for name, layer in [*model.named_modules()][1:]:
            hooks.enter_context(layer.register_forward_hook(partial(record, name)))
        yield executed, culprits

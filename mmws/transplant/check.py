"""Checks of the images and the networks of a transplant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.layer_types import is_batch_norm
from mmws.conversion.module_tree import module_names
from mmws.conversion.trained_norms import trained_batch_norms
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception, shortened
from mmws.transplant.unfitted import why_untrained

__all__ = ['as_batch', 'check_finite', 'check_samples', 'check_trained', 'run_default']

STATISTICS = ('running_mean', 'running_var')


def as_batch(images: Any) -> Any:
    """Return images of one size as one tensor; other inputs of a network unchanged.

    Raises:
        WSError: if there are no images, or of several sizes.
    """
    if isinstance(images, (list, tuple)) and images and all(isinstance(image, Tensor) for image in images):
        sizes = sorted({tuple(image.shape) for image in images})
        if len(sizes) > 1:
            raise WSError(f'transplant_: expected images of one size, got {shortened(sizes)}; resize or crop them')
        images = torch.stack(list(images))
    if isinstance(images, (Tensor, list, tuple)) and len(images) == 0:
        raise WSError('transplant_: expected images, got none')
    return images


def check_samples(samples: Any, seed: Any) -> None:
    """Refuse arguments of :func:`mmws.transplant_` that are no counts."""
    for name, value in (('samples', samples), ('seed', seed)):
        if not isinstance(value, int) or value < 0:
            raise WSError(f'transplant_: {name}: expected a whole number, 0 or more, got {value!r}')


def run_default(forward: Callable[[nn.Module, Any], Any], network: nn.Module, images: Any) -> Any:
    """Return ``forward(network, images)``.

    Raises:
        WSError: if the network cannot run on the images.
    """
    try:
        return forward(network, images)
    except WSError:
        raise
    except FOREIGN_ERRORS as error:
        dtype = next((parameter.dtype for parameter in network.parameters()), torch.float32)
        got = f'{images.dtype} of shape {tuple(images.shape)}' if isinstance(images, Tensor) else shortened(images)
        raise WSError(f'transplant_: {type(network).__name__} does not run on the images: {format_exception(error)}. '
                      f'Expected a tensor (N, C, H, W) of {dtype}, as in training, got {got}; or give `forward`'
                      ) from error


def check_trained(network: nn.Module, what: str) -> None:
    """Refuse a network without a trained BatchNorm."""
    if not trained_batch_norms(network):
        reasons = {why_untrained(norm) for norm in network.modules() if is_batch_norm(norm)}
        raise WSError(f'transplant_: the {what}, {type(network).__name__}, has no ' + (
            f'BatchNorm to carry over: {min(reasons)}; load its weights first' if reasons else
            'BatchNorm; give the BatchNorm network itself, or give it as `teacher`'))


def check_finite(network: nn.Module, what: str, advice: str) -> None:
    """Refuse NaN, infinite values and negative variances in the parameters and statistics of ``network``.

    Raises:
        WSError: with the name of the tensor, ``what`` the network is, and the ``advice``.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(2))
        >>> _ = net[0].running_var.fill_(-1)
        >>> check_finite(net, 'the BatchNorm network', 'take another checkpoint')
        Traceback (most recent call last):
        mmws.errors.WSError: transplant_: 0.running_var of the BatchNorm network is negative; take another checkpoint
    """
    for module, name in module_names(network).items():
        for key, tensor in {**module._parameters, **module._buffers}.items():
            is_used = key in module._parameters or key in STATISTICS
            if tensor is None or not is_used or not tensor.is_floating_point():
                continue
            problem = ('has NaN or infinite values' if not torch.isfinite(tensor).all() else
                       'is negative' if key == 'running_var' and (tensor < 0).any() else '')
            if problem:
                raise WSError(f'transplant_: {f"{name}.{key}".lstrip(".")} of {what} {problem}; {advice}')

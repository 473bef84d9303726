"""Transplant of what a BatchNorm network learned into its converted form."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mmws.conversion.convert import convert_
from mmws.conversion.layer_types import is_batch_norm
from mmws.conversion.module_tree import module_names
from mmws.conversion.options import Options
from mmws.conversion.trained_norms import trained_batch_norms
from mmws.errors import WSError, shortened
from mmws.ops.torch_compat import tree_leaves
from mmws.transplant.hooks import FittedConv, FittedNorm
from mmws.transplant.pairs import conv_before_each_norm, copy_weights_, module_pairs
from mmws.transplant.record import Record, evaluating, recording
from mmws.transplant.report import TransplantReport

__all__ = ['float_tensors', 'transplant_']

FEWEST_IMAGES = 8


def transplant_(model: nn.Module, images: Any, *, teacher: nn.Module | None = None,
                forward: Callable[[nn.Module, Any], Any] | None = None, samples: int = 4096, seed: int = 0,
                **options: Any) -> TransplantReport:
    r"""Convert a BatchNorm network and fit it to what it computed before, with a few images and no labels, in place.

    Standardization removes the mean of each filter, and GroupNorm has no statistics of the training: weights taken over
    by name lose much of what the network learned. One pass of the converted network replaces them, in order of
    execution. A convolution gets filters by ridge regression from its new input to the BatchNorm's output
    (:func:`mmws.transplant.filters.fit_filters`). A norm gets the affine parameters that give each channel the mean and
    the deviation of the BatchNorm's output (:class:`mmws.transplant.norms.NormFit`). The network is a start for
    training, and not the same function as before.

    Two-dimensional convolutions that one norm follows are fitted. Others keep their filters.

    Args:
        model: a trained BatchNorm network, which becomes the converted one; or a converted network with ``teacher``.
        images: input of the network, as in training but without augmentation: (N, 3, H, W), with 8 images or more; 64
            are better. With ``forward``, anything.
        teacher: the BatchNorm network, if ``model`` is converted already; it has the same modules and stays unchanged.
        forward: called as ``forward(network, images)``. Default: ``network.extract_feat(images)`` for a toolkit's
            model, ``network(images)`` for others.
        samples: the number of positions of a feature map, over all images, that the regressions use; with 0 the
            convolutions keep their filters.
        seed: of the positions.
        options: of :func:`mmws.convert_`, for a network to convert.

    Returns:
        The report: what each convolution lost, the fit of each norm, the distance of the outputs.

    Raises:
        WSError: if there are no images, or of several sizes; the network has no trained BatchNorm; ``teacher`` has
            other modules; ``weight`` is neither ``'ws'`` nor ``'plain'``. The model is unchanged then.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> images = torch.randn(16, 3, 16, 16)
        >>> _ = net(images)  # instead of a training
        >>> report = transplant_(net, images)
        >>> type(net[0]).__name__, type(net[1]).__name__, report.fit['1'] > 0.5
        ('ConvWS2d', 'GroupNorm', True)
    """
    images, forward = _stacked(images), forward or _forward
    if Options.parse(options).weight not in ('ws', 'plain'):
        raise WSError(f"transplant_: expected weight='ws' or weight='plain', got {options['weight']!r}")
    source = copy.deepcopy(model) if teacher is None else teacher
    trained = _trained(source, teacher is not None)
    pairs = {} if teacher is None else dict(module_pairs(source, model))  # refuses another network
    conv_of = conv_before_each_norm(source) if samples else {}
    with recording(list(trained), list(conv_of.values()), samples, seed) as record, evaluating(source):
        expected = forward(source, images)
    report = TransplantReport(images=_count_images(record))
    if teacher is None:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*was trained with BatchNorm')
            report.conversion = convert_(model, **options)
    else:
        copy_weights_(pairs)
    with evaluating(model), ExitStack() as hooks:
        pairs = pairs or dict(module_pairs(source, model))
        _attach(pairs, module_names(model), trained, conv_of, record, report, hooks)
        report.distance = _distance(forward(model, images), expected)
    return report


def _stacked(images: Any) -> Any:
    if isinstance(images, (list, tuple)) and images and all(isinstance(image, Tensor) for image in images):
        sizes = sorted({tuple(image.shape) for image in images})
        if len(sizes) > 1:
            raise WSError(f'transplant_: expected images of one size, got {shortened(sizes)}; resize or crop them')
        images = torch.stack(list(images))
    if isinstance(images, (Tensor, list, tuple)) and len(images) == 0:
        raise WSError('transplant_: expected images, got none')
    return images


def _forward(network: Any, images: Any) -> Any:
    return (network.extract_feat if callable(getattr(network, 'extract_feat', None)) else network)(images)


def _trained(teacher: nn.Module, converted: bool) -> dict[nn.Module, str]:
    norms = {norm: name for norm, name in trained_batch_norms(teacher).items() if is_batch_norm(norm)}
    if not norms:
        has_norms = any(map(is_batch_norm, teacher.modules()))
        what = 'teacher' if converted else 'network'
        reason = ('BatchNorms that were never trained (running mean 0, variance 1); load its weights first' if has_norms
                  else 'no BatchNorm; give the BatchNorm network itself, or give it as `teacher`')
        raise WSError(f'transplant_: the {what}, {type(teacher).__name__}, has {reason}')
    return norms


def _count_images(record: Record) -> int:
    first = next(iter(record.calls.values()), None)
    if first is None:
        raise WSError('transplant_: no trained BatchNorm ran on the images; give `forward`, a function of the network '
                      'and the images that runs the whole network')
    if first[0].shape[0] < FEWEST_IMAGES:
        warnings.warn(f'transplant_: {first[0].shape[0]} images, expected {FEWEST_IMAGES} or more: estimates from so '
                      'few are noisy', stacklevel=3)
    return first[0].shape[0]


def _attach(pairs: dict[nn.Module, nn.Module], names: dict[nn.Module, str], trained: dict[nn.Module, str],
            conv_of: dict[nn.Module, nn.Module], record: Record, report: TransplantReport, hooks: ExitStack) -> None:
    for norm in filter(is_batch_norm, pairs):
        name, calls, conv = names[pairs[norm]], record.calls.get(norm, []), conv_of.get(norm)
        if not calls:
            report.kept[name] = ('it did not run on the images' if norm in trained else
                                 'its BatchNorm was never trained')
            continue
        if conv is not None:
            fitted = FittedConv(names[pairs[conv]], conv, norm, calls, record.shapes[conv], report)
            hooks.callback(pairs[conv].register_forward_pre_hook(fitted).remove)
        hook = FittedNorm(name, pairs[norm], norm, calls, conv is not None, report)
        hooks.callback(pairs[norm].register_forward_pre_hook(hook).remove)


def _distance(outputs: Any, expected: Any) -> float | None:
    found, wanted = (float_tensors(value) for value in (outputs, expected))
    if not wanted or [leaf.shape for leaf in found] != [leaf.shape for leaf in wanted]:
        return None
    error = sum(float((one - other).square().sum()) for one, other in zip(found, wanted))
    total = sum(float(leaf.square().sum()) for leaf in wanted)
    return round(math.sqrt(error / total), 4) if total else None


def float_tensors(value: Any) -> list[Tensor]:
    """Return the floating tensors in a structure of tuples, lists and dicts."""
    return [leaf.float() for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

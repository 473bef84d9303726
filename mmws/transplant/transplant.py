"""Transplant of what a BatchNorm network learned into its converted form."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from mmws.conversion.convert import convert_
from mmws.conversion.layer_types import is_batch_norm, is_conv
from mmws.conversion.module_tree import module_names
from mmws.conversion.parametrize_convs import weight_form
from mmws.conversion.report import Report
from mmws.conversion.trained_norms import trained_batch_norms
from mmws.errors import WSError
from mmws.transplant.check import as_batch, check_finite, check_samples, check_trained, run_default
from mmws.transplant.hooks import FittedConv, FittedNorm, MeasuredNorm
from mmws.transplant.outputs import relative_distance
from mmws.transplant.pairs import conv_before_each_norm, copy_weights_, module_pairs
from mmws.transplant.record import Calls, evaluating, recording
from mmws.transplant.report import TransplantReport
from mmws.transplant.unfitted import MeasuredConv, is_new, name_unfitted

__all__ = ['FEWEST_IMAGES', 'transplant_']

FEWEST_IMAGES = 8
NO_SAMPLES = 'samples=0: the convolutions keep their filters'


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
            are better. With ``forward``, anything that it takes.
        teacher: the BatchNorm network, if ``model`` is converted already, which then takes its weights; it has the same
            modules and stays unchanged. Leave out ``options`` then.
        forward: called as ``forward(network, images)``. Default: ``network.extract_feat(images)`` for a toolkit's
            model, ``network(images)`` for others.
        samples: the number of positions of a feature map, over all images, that the regressions use; with 0 the
            convolutions keep their filters.
        seed: of the positions.
        options: of :func:`mmws.convert_`, for a network to convert.

    Returns:
        The report: what each convolution lost, the fit of each norm, the distance of the outputs.

    Raises:
        WSError: if there are no images, or of several sizes, or the network does not run on them; the network has no
            trained BatchNorm, NaN or infinite values, before or after; ``teacher`` has other modules; ``weight`` is
            neither ``'ws'`` nor ``'plain'``. After this and any other exception the model is unchanged.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> images = torch.randn(16, 3, 16, 16)
        >>> _ = net(images)  # instead of a training
        >>> report = transplant_(net, images)
        >>> type(net[0]).__name__, type(net[1]).__name__, report.fit['1'] > 0.5
        ('ConvWS2d', 'GroupNorm', True)
    """
    check_samples(samples, seed)
    first = forward or partial(run_default, _forward)
    images, forward = (as_batch(images), _forward) if forward is None else (images, forward)
    source, student, conversion = _networks(model, teacher, options)
    norms = {norm: name for norm, name in trained_batch_norms(source).items() if is_batch_norm(norm)}
    conv_of, reasons = conv_before_each_norm(source)
    conv_of = conv_of if samples else {}
    with recording(norms, conv_of, samples, seed) as calls, evaluating(source):
        expected = first(source, images)
    report = TransplantReport(conversion=conversion, images=_count_images(calls))
    pairs, names = dict(module_pairs(source, student)), module_names(student)
    with evaluating(student):
        convs = {norm: FittedConv(names[pairs[conv_of[norm]]], conv_of[norm], norm, own, report)
                 for norm, own in calls.items() if norm in conv_of}
        conv_hooks = [(pairs[conv_of[norm]], hook) for norm, hook in convs.items()]
        for hooks in [conv_hooks, []] if any(len(own) > 1 for own in calls.values()) else [conv_hooks]:
            # The second pass is for shared layers: their filters have changed after some of their calls.
            norm_hooks = [(pairs[norm], FittedNorm(pairs[norm], norm, own, convs.get(norm)))
                          for norm, own in calls.items()]
            with _hooked([*hooks, *norm_hooks]):
                forward(student, images)
        measured = [*((pairs[norm], MeasuredNorm(names[pairs[norm]], pairs[norm], own, report))
                      for norm, own in calls.items()),
                    *((module, MeasuredConv(names[module], conv, report)) for conv, module in pairs.items()
                      if is_new(conv, module) and names[module] not in report.ridge)]
        with _hooked(measured):
            report.distance = relative_distance(forward(student, images), expected)
    name_unfitted(report, pairs, names, calls, reasons if samples else dict.fromkeys(pairs, NO_SAMPLES))
    check_finite(student, 'the fitted network', f'{type(model).__name__} stays as it was; try other images')
    if teacher is None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the conversion of the copy has warned
            convert_(model, **options)
    _take_weights_(model, student)
    return report


def _forward(network: Any, images: Any) -> Any:
    return (network.extract_feat if callable(getattr(network, 'extract_feat', None)) else network)(images)


def _networks(model: nn.Module, teacher: nn.Module | None,
              options: dict[str, Any]) -> tuple[nn.Module, nn.Module, Report | None]:
    """Return the BatchNorm network, a converted copy of ``model`` with its weights, the report of the conversion."""
    source = copy.deepcopy(model) if teacher is None else teacher
    check_trained(source, 'network' if teacher is None else 'teacher')
    check_finite(source, 'the BatchNorm network', 'take weights of an earlier step of its training')
    student, report = copy.deepcopy(model), None
    if teacher is None:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*was trained with BatchNorm')
            report = convert_(student, **options)
    elif options:
        raise WSError(f'transplant_: options of the conversion ({", ".join(options)}) and a `teacher`; expected one of '
                      'them, because with a teacher the network is converted already')
    forms = {weight_form(conv) for conv in student.modules() if is_conv(conv)} - {'ws', 'plain'}
    if forms:
        raise WSError(f"transplant_: expected weight='ws' or weight='plain', got {forms.pop()!r}")
    pairs = dict(module_pairs(source, student))
    if all(type(one) is type(other) for one, other in pairs.items()):
        raise WSError(f'transplant_: {type(model).__name__} is not converted: it has the layers of the BatchNorm '
                      'network; leave out `teacher`, or change the options')
    copy_weights_(pairs)
    return source, student, report


def _count_images(calls: Calls) -> int:
    if not calls:
        raise WSError('transplant_: no trained BatchNorm ran on the images; give `forward`, a function of the network '
                      'and the images that runs the whole network')
    number = next(iter(calls.values()))[0].shape[0]
    if number < FEWEST_IMAGES:
        warnings.warn(f'transplant_: {number} images, expected {FEWEST_IMAGES} or more: estimates from so few are '
                      'noisy', stacklevel=3)
    return number


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Any]]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _take_weights_(model: nn.Module, student: nn.Module) -> None:
    """Copy the fitted parameters and buffers: the network stays as it was if something fails before."""
    with torch.no_grad():
        for tensors in ('parameters', 'buffers'):
            for own, fitted in zip(getattr(model, tensors)(), getattr(student, tensors)()):
                own.copy_(fitted)

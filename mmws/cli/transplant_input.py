"""Check that the images of a transplant fit the statistics of the BatchNorm network."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmws.conversion.layer_types import batch_norms
from mmws.transplant.sampling import moments

__all__ = ['input_distances', 'warn_of_wrong_input']

# Chosen on the demo's BatchNorm network (iter_4000.pth) and 64 images, its own and crops of photos. Distances as given,
# and with red and blue exchanged: right 0.02 and 0.10, photos 0.04 and 0.14; bgr_to_rgb wrong 0.23 and 0.12, photos
# 0.24 and 0.13. Other images with the right input: grey photos 0.153 and 0.145, noise 0.475 and 0.442. Wrong mean and
# std: 0.61 and 0.60 for images from 0 to 1, above 4,000 for a std of 1.
CLOSE = 0.1
BETTER = 0.9
FAR = 0.5
ADVICE = 'Set mean, std and bgr_to_rgb of data_preprocessor to those of the training that made the weights'


class _Seen(Exception):  # noqa: N818
    """Ends a pass of the network at its first norm."""


def warn_of_wrong_input(model: Any, images: Tensor, checkpoint: str) -> None:
    """Warn if the statistics of the first BatchNorm of ``model`` fit other channels or other values than ``images``."""
    backbone: nn.Module = getattr(model, 'backbone', model)
    first: Any = next(iter(batch_norms(backbone)), None)
    if getattr(first, 'running_mean', None) is None or not (first.running_mean.any() or (first.running_var != 1).any()):
        return  # Caffe's form: the statistics are in the affine map
    given, exchanged = input_distances(backbone, first, images) or (0.0, 0.0)
    if given > CLOSE and exchanged < min(FAR, BETTER * given):
        what = f'images with red and blue exchanged better ({exchanged:.2g}) than as they are ({given:.2g})'
    elif given > FAR:
        what = f'other images than these: their distance is {given:.2g}, expected at most {FAR:g}'
    else:
        return
    print_log(f'mmws: {checkpoint}: the statistics of its first BatchNorm fit {what}. {ADVICE}', 'current',
              logging.WARNING)


def input_distances(backbone: nn.Module, norm: Any, inputs: Tensor) -> tuple[float, float] | None:
    """Return the distance of what ``norm`` gets from its statistics, for images as given and with exchanged channels.

    It is the squared distance of the mean plus that of the deviation, in units of the deviation, averaged over the
    channels. None if ``norm`` does not run.
    """
    distances: list[float] = []

    def measure(module: Any, args: Any) -> None:
        now, deviation = moments(args[0]), (module.running_var + module.eps).sqrt()
        ratio = (now.variance + module.eps).sqrt() / deviation
        distances.append(float((((now.mean - module.running_mean) / deviation).square() + (ratio - 1).square()).mean()))
        raise _Seen

    hook = norm.register_forward_pre_hook(measure)
    try:
        with torch.no_grad():
            for images in (inputs, inputs.flip(1)):
                try:
                    backbone(images)
                except _Seen:
                    continue
    finally:
        hook.remove()
    return (distances[0], distances[1]) if distances else None

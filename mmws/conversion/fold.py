"""Fold a trained network: plain convolutions that hold the standardized weights."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from mmws.conversion.layer_types import class_name
from mmws.conversion.parametrize_convs import remove_parametrization_, weight_form
from mmws.conversion.swap_convs import MMCV_CONV_WS
from mmws.errors import WSError, shortened
from mmws.layers.conv import WeightStandardized
from mmws.ops.standardize import standardize_weight

__all__ = ['fold']


def fold(model: nn.Module) -> nn.Module:
    r"""Return a copy of ``model`` with plain convolutions that hold the standardized weight.

    .. math:: \mathrm{conv}(x; \hat w)

    with :math:`\hat w` of :func:`mmws.standardize_weight`, arXiv 1903.10520. A folded weight has the shape and the
    dtype of the raw one.

    The copy has the same outputs, the speed of a plain network, and needs no mmws. mmcv's ``ConvWS2d`` folds too, and
    torch's weight and spectral normalization (:mod:`mmws.conversion.parametrize_convs`). Dtypes, devices,
    ``requires_grad``, hooks and sharing are kept: if two standardized convolutions share a weight, the folded ones
    share the standardized weight; a plain convolution that shares it keeps the raw weight. The copy is for inference:
    further training would train plain convolutions.

    Args:
        model: a network in eval mode.

    Raises:
        WSError: if a module is in training mode, is an unknown subclass of a standardized convolution, or has a
            weight computed by other code (pruning, parametrization).

    Example:
        >>> from mmws import convert_
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        >>> _ = convert_(net)
        >>> [type(module).__name__ for module in fold(net)]
        ['Conv2d', 'GroupNorm']
    """
    if not isinstance(model, nn.Module):
        raise WSError(f'fold: expected a network (nn.Module), got {shortened(model)}')
    for name, module in model.named_modules():
        if module.training:
            raise WSError(f'fold: {name or "the model"} ({type(module).__name__}) is in training mode; '
                          'call model.eval() first')
    plain = {name: kind for name, module in model.named_modules() if (kind := _plain_class(module, name))}
    folded = copy.deepcopy(model)
    shared: dict[tuple[nn.Parameter, float], nn.Parameter] = {}
    for name, kind in plain.items():
        _fold_conv_(folded.get_submodule(name), kind, shared)
    for module in folded.modules():
        if weight_form(module) in ('wn', 'spectral'):
            remove_parametrization_(module)
        _remove_functions_(module)
    return folded


def _plain_class(module: nn.Module, name: str) -> type[nn.Module] | None:
    """Return the class of the folded ``module``, None if ``module`` is not a standardized convolution."""
    kind = type(module)
    if not isinstance(module, WeightStandardized):
        return nn.Conv2d if class_name(module) == MMCV_CONV_WS else None
    if parametrize.is_parametrized(module, 'weight'):
        raise WSError(f'fold: the weight of {name or "the module"} has a parametrization of other code; remove it '
                      "first: torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')")
    if not kind.__module__.startswith('mmws.'):
        raise WSError(f'fold: {name or "the module"} has class {kind.__name__}, an unknown subclass of a standardized '
                      'convolution; its plain class is not known')
    if 'weight' not in module._parameters:
        raise WSError(f'fold: the weight of {name or "the module"} is not a parameter, other code computes it; '
                      'make it a parameter first (for example with torch.nn.utils.prune.remove)')
    return kind.__bases__[-1]


def _fold_conv_(conv: Any, kind: type[nn.Module], shared: dict[tuple[nn.Parameter, float], nn.Parameter]) -> None:
    """Make ``conv`` a plain convolution; ``shared`` maps raw weight and eps to the folded weight."""
    raw, eps = conv.weight, conv.eps
    if (raw, eps) not in shared:
        of_mmws = isinstance(conv, WeightStandardized)
        standardized = conv.standardized_weight() if of_mmws else standardize_weight(raw, eps)
        shared[raw, eps] = nn.Parameter(standardized.detach(), raw.requires_grad)
    object.__setattr__(conv, '__class__', kind)
    del conv.eps
    for name in ('_cache', '_compiled', 'use_cache'):
        vars(conv).pop(name, None)
    conv.weight = shared[raw, eps]


def _remove_functions_(module: nn.Module) -> None:
    """Remove what acts on loaded and initial weights: functions of mmws and of torch's weight normalization.

    A pickle with the first would need mmws; the second cannot be pickled.
    """
    foreign = ('mmws.', 'torch.nn.utils.parametrizations')
    hooks: dict[int, Any] = module._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if getattr(hook.hook, '__module__', '').startswith(foreign)]:
        del hooks[key]
    for name in [name for name, value in vars(module).items()
                 if isinstance(value, partial) and value.func.__module__.startswith('mmws.')]:
        delattr(module, name)

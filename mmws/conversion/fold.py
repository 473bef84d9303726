"""Turn a trained network into one that knows nothing of Weight Standardization. Imports torch alone."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from mmws.conversion.parametrize_convs import plain_conv_, weight_form
from mmws.errors import WSError
from mmws.layers.conv import WeightStandardized
from mmws.ops.standardize import standardize_weight

__all__ = ['fold', 'plain_class']

# Standardized classes that are not ours, by name, so that mmcv's is known without importing mmcv.
_PLAIN = {'mmcv.cnn.bricks.conv_ws.ConvWS2d': nn.Conv2d}


def fold(model: nn.Module) -> nn.Module:
    r"""Return a copy of ``model`` whose standardized convolutions are plain ones that hold the standardized weight.

    .. math:: \mathrm{conv}(x; \hat w) \text{ with } \hat w \text{ of } :func:`mmws.standardize_weight`

    The copy computes what the model does, is as fast as one that was never standardized and needs no mmws. mmcv's
    ``ConvWS2d`` folds too, and torch's weight and spectral normalization (:mod:`mmws.conversion.parametrize_convs`).
    Dtypes, devices, ``requires_grad``, hooks and sharing are kept: where two standardized convolutions share a
    parameter the folded ones share theirs; a plain convolution that shares it keeps the raw one.
    A folded network is for inference: training it on trains plain convolutions.

    Args:
        model: in eval mode.

    Raises:
        WSError: if a module is in training mode, or is a subclass of a standardized convolution, whose behaviour is
            unknown, or its weight is computed by others (pruning, parametrization).

    Example:
        >>> from mmws import convert_
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        >>> _ = convert_(net)
        >>> [type(module).__name__ for module in fold(net)]
        ['Conv2d', 'GroupNorm']
    """
    if not isinstance(model, nn.Module):
        raise WSError(f'fold: expected a network (nn.Module), got {model!r:.80}')
    plain = {}
    for name, module in model.named_modules():
        if module.training:
            raise WSError(f'fold: {name or "the model"} ({type(module).__name__}) is in training mode; folding is for '
                          'inference, call model.eval() first')
        if kind := plain_class(module, name):
            plain[name] = kind
    folded = copy.deepcopy(model)
    shared: dict[tuple[nn.Parameter, float], nn.Parameter] = {}
    for name, kind in plain.items():
        _fold_conv_(folded.get_submodule(name), kind, shared)
    for module in folded.modules():
        if weight_form(module) in ('wn', 'spectral'):
            plain_conv_(module)
        _remove_our_hooks_(module)
    return folded


def plain_class(module: nn.Module, name: str = '') -> type[nn.Module] | None:
    """Return the class that ``module`` is without Weight Standardization, None if it is not standardized.

    Raises:
        WSError: if what it would be is not known; ``name`` is for the message.

    Example:
        >>> from mmws import ConvWS1d
        >>> plain_class(ConvWS1d(2, 2, 1)), plain_class(nn.ReLU())
        (<class 'torch.nn.modules.conv.Conv1d'>, None)
    """
    kind = type(module)
    if not isinstance(module, WeightStandardized):
        return _PLAIN.get(f'{kind.__module__}.{kind.__qualname__}')
    if not kind.__module__.startswith('mmws.'):
        raise WSError(f'fold: {name or "the module"} is a {kind.__name__}, a subclass of a standardized convolution; '
                      'what it would be without standardization is not known')
    if 'weight' not in module._parameters:
        raise WSError(f'fold: the weight of {name or "the module"} is no parameter: something computes it; '
                      'make that permanent first (torch.nn.utils.prune.remove and the like)')
    return kind.__bases__[-1]


def _fold_conv_(conv: Any, kind: type[nn.Module], shared: dict[tuple[nn.Parameter, float], nn.Parameter]) -> None:
    """Make ``conv`` a plain convolution, in place; ``shared`` holds what its parameters became elsewhere."""
    raw, eps = conv.weight, conv.eps
    if (raw, eps) not in shared:
        ours = isinstance(conv, WeightStandardized)
        standardized = conv.standardized_weight() if ours else standardize_weight(raw, eps)
        shared[raw, eps] = nn.Parameter(standardized.detach(), raw.requires_grad)
    conv.__class__ = kind
    del conv.eps
    vars(conv).pop('_cache', None)
    conv.weight = shared[raw, eps]


def _remove_our_hooks_(module: nn.Module) -> None:
    """Our warnings about what is loaded into a standardized network; a pickle with them would need mmws."""
    hooks: dict[int, Any] = module._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if getattr(hook.hook, '__module__', '').startswith('mmws.')]:
        del hooks[key]

"""Conversion of any network to Weight Standardization, in place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.prune import BasePruningMethod

from mmws.conversion.averaged_models import rename_parameters_
from mmws.conversion.decision import Decision
from mmws.conversion.layer_types import class_name, is_conv, is_norm
from mmws.conversion.module_tree import module_names
from mmws.conversion.options import Options
from mmws.conversion.parametrize_convs import WEIGHTS, reparametrize_conv_, weight_form
from mmws.conversion.placement import apply_globs_, find_placement
from mmws.conversion.replace_norms import replace_batch_norms_
from mmws.conversion.report import Report
from mmws.conversion.swap_convs import standardize_conv_
from mmws.conversion.trained_norms import trained_batch_norms, warn_of_lost_training, watch_loads_
from mmws.conversion.unsupported import shared_weight_reasons, unsupported_reason
from mmws.errors import WSError, shortened
from mmws.layers.conv import WeightStandardized
from mmws.ops.torch_compat import tree_leaves

__all__ = ['convert_']


def convert_(model: nn.Module, *, norm: str = 'GN', weight: str = 'ws', num_groups: int = 32, eps: float = 1e-5,
             cache: bool = True, exclude: Sequence[str] = (), include: Sequence[str] = (), inputs: Any = None,
             **unknown: Any) -> Report:
    """Standardize each convolution of ``model`` that only norms follow, and replace BatchNorm by GroupNorm, in place.

    Weight Standardization, arXiv 1903.10520. :func:`mmws.conversion.placement.find_placement` selects the convolutions.
    Modules keep their identity, parameters, hooks, sharing and modes. State-dict keys become those of a network built
    with the new norm: where a module stores the name of its norm, as mmcv's do, ``bn1`` becomes ``gn1``. The new
    GN, LN or IN is trainable if its convolution is, even if the BatchNorm was frozen. A second conversion with
    the same options changes nothing. A network that was trained with BatchNorm loses what it learned, wholly or in
    part: a warning says so, here and when such weights load into the converted network.

    Args:
        model: any network; the OpenMMLab packages are not needed.
        norm: the replacement of BatchNorm: GroupNorm ``'GN'``, GroupNorm with one group ``'LN'``, instance
            normalization ``'IN'``, :class:`mmws.layers.switchable_norm.SwitchableNorm` ``'SN'``,
            :class:`mmws.layers.batch_channel_norm.BatchChannelNorm` ``'BCN'``, the same with estimated statistics
            ``'EstBN'``. ``'keep'`` keeps all norms.
        weight: the form of the weights: standardized ``'ws'``, weight normalization ``'wn'``, spectral normalization
            ``'spectral'`` (:func:`mmws.conversion.parametrize_convs.reparametrize_conv_`), unchanged ``'plain'``.
        num_groups: the maximum number of groups; each norm gets the largest divisor of its channels up to it.
        eps: added to the standard deviation of each filter, see :func:`mmws.standardize_weight`.
        cache: False to standardize at each use, and again in the backward pass: this saves the memory of a second
            weight and costs time.
        exclude: globs on module names, such as ``['neck.*']``. Matching convolutions stay plain; their norms are
            replaced.
        include: globs on module names. If given, only matching convolutions are standardized, and a LayerNorm counts as
            a norm for them.
        inputs: the argument of the network if it is a tensor; else a tuple or list of its arguments, or a mapping of
            keyword arguments. Give them where an image does not do: point clouds, text, several images. A batch of a
            toolkit's data loader, ``dict(inputs=..., data_samples=...)``, runs as in its training and its test. The
            copy runs in training mode and in evaluation mode, without forward hooks. If one mode fails, a warning says
            so, and the other decides. Without ``inputs``, the copy runs on an empty image, and the module tree decides
            for what does not run.

    Returns:
        The report: converted and skipped convolutions with reasons, replaced norms, and convolution functions outside
        of modules.

    Raises:
        WSError: if an option is unknown or has a wrong value, a glob matches no convolution, a weight already has
            another form, the network has lazy, quantized, scripted or exported layers, or it does not run on ``inputs``
            or cannot be copied to run on them. The model is unchanged then.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> print(convert_(net))
        Weight Standardization: 1 convolutions standardized, 1 modules unchanged, 1 BatchNorm replaced by GroupNorm
          standardized  0
          unchanged     3: no norm follows: the output leaves the network
          norm          1: BatchNorm2d -> GroupNorm(8, 8)
    """
    _check_network(model)
    options = Options.parse({'norm': norm, 'weight': weight, 'num_groups': num_groups, 'eps': eps, 'cache': cache,
                             'exclude': exclude, 'include': include, **unknown})
    trained = {norm: (name, type(norm)) for norm, name in trained_batch_norms(model).items()}
    placement = find_placement(model, inputs)
    apply_globs_(placement.decisions, model, options)
    report = _convert_convs_(placement.decisions, module_names(model), options)
    report.skipped.update(_unregistered_modules(model))
    report.functions = placement.functions
    if norm != 'keep':
        report.norms, kept = replace_batch_norms_(model, norm, num_groups, placement.producers(), placement.pointwise)
        report.skipped.update(kept)
        watch_loads_(model, {model.get_submodule(name) for name in report.norms})
    rename_parameters_(model)
    _warn_of_hooks(model, report.converted)
    changed = _norms_after_changed(report, model, placement.decisions)
    warn_of_lost_training(model, [name for norm, (name, kind) in trained.items()
                                  if type(norm) is not kind or norm in changed])
    if weight not in ('plain', *map(weight_form, placement.decisions)):
        warnings.warn(f'nothing was {WEIGHTS[weight][1]} in {type(model).__name__}: '
                      f'{_why_nothing(model, placement.decisions)}', stacklevel=2)
    return report


def _why_nothing(model: nn.Module, decisions: dict[nn.Module, Decision]) -> str:
    """Return why no convolution changed: the reason of one that only norms follow, else of the first one."""
    if not any(map(is_norm, model.modules())):
        return 'it has no norm'
    if not decisions:
        return 'it has no convolution'
    conv, decision = min(decisions.items(), key=lambda item: bool(item[1].reason))
    return decision.reason or unsupported_reason(conv, decision.use)


def _check_network(model: Any) -> None:
    """Refuse what has no convolution modules any more, a compiled script or an exported graph, and lazy modules."""
    if not isinstance(model, nn.Module):
        raise WSError(f'convert_: expected a network (nn.Module), got {shortened(model)}')
    for name, module in model.named_modules():
        lazy = any(isinstance(parameter, nn.UninitializedParameter) for parameter in module.parameters(recurse=False))
        if lazy and (is_conv(module) or is_norm(module)) and any(map(is_norm, model.modules())):
            raise WSError(f'convert_: {name or "the network"} ({type(module).__name__}) has parameters without a '
                          'shape; run the network once before the conversion')
        exported = isinstance(module, fx.GraphModule) and any(
            str(node.target).startswith('aten.conv') for node in module.graph.nodes)
        if type(module).__module__.startswith(('torch.ao.nn.', 'torch.nn.quantized', 'torch.nn.qat')):
            raise WSError(f'convert_: {name or "the network"} is quantized or prepared for it, its class is '
                          f'{class_name(module)}; convert the network first: convert_, train, fold, then quantize')
        if exported or isinstance(module, torch.jit.ScriptModule):
            done, first = ('exported', 'torch.export') if exported else ('scripted or traced', 'torch.jit')
            raise WSError(f'convert_: {name or "the network"} is {done}, its layers cannot be replaced; convert the '
                          f'network before {first}')


def _convert_convs_(decisions: dict[nn.Module, Decision], names: dict[nn.Module, str], options: Options) -> Report:
    weight = options.weight
    for conv, decision in decisions.items():
        form = weight_form(conv)
        if not decision.reason and form not in ('plain', weight):
            raise WSError(f'ws option weight: {names[conv] or "the network"} is already {WEIGHTS[form][1]}, '
                          f'cannot change it to {weight!r}; set weight={form!r}, '
                          'or build the network with plain convolutions')
    not_run = [names[conv] for conv in decisions if not decisions[conv].ran and is_conv(conv)]
    report = Report(unseen=not_run, norm=options.norm, weight=weight)
    reasons = {conv: decision.reason or unsupported_reason(conv, decision.use, weight)
               for conv, decision in decisions.items()}
    uses = {conv: decision.use for conv, decision in decisions.items()}
    shared = shared_weight_reasons(names, reasons, uses, weight)
    for conv, reason in shared.items():
        decisions[conv].reason = reasons[conv] = reason
    for conv, decision in decisions.items():
        if reasons[conv] or weight == 'plain':
            report.skipped[names[conv]] = reasons[conv] or "ws option weight='plain'"
        else:
            if weight == 'ws':
                standardize_conv_(conv, options.eps, decision.use)
            else:
                reparametrize_conv_(conv, weight)
            report.converted.append(names[conv])
        if isinstance(conv, WeightStandardized) and conv.use_cache != options.cache:
            conv.use_cache = options.cache
    return report


def _warn_of_hooks(model: nn.Module, converted: Sequence[str]) -> None:
    """Warn of forward hooks on converted convolutions: no dry run shows what they do."""
    convs = {name: model.get_submodule(name) for name in converted}
    hooked = [name for name, conv in convs.items()
              if not all(isinstance(hook, BasePruningMethod) for hook in
                         (*conv._forward_hooks.values(), *conv._forward_pre_hooks.values()))]
    if hooked:
        warnings.warn(f'convert_: {shortened(hooked)} have forward hooks or pre-hooks, which did not run. If a hook '
                      'changes the input or the output, or reads the weight, set exclude=[...] for this convolution',
                      stacklevel=3)


def _norms_after_changed(report: Report, model: nn.Module, decisions: dict[nn.Module, Decision]) -> set[nn.Module]:
    """Return the norms whose input changed; weight normalization starts from the weights as they are."""
    converted = [model.get_submodule(name) for name in report.converted if report.weight != 'wn']
    return {norm for conv in converted for norm in decisions[conv].norms}


def _unregistered_modules(model: nn.Module) -> dict[str, str]:
    """Return modules that are plain attributes, such as the teacher of mmdet's distillation, with the reason."""
    registered = set(model.modules())
    return {f'{name}.{attribute}'.lstrip('.'): 'not a registered submodule'
            for name, module in model.named_modules() for attribute, value in vars(module).items()
            for inner in tree_leaves(value) if isinstance(inner, nn.Module) and inner not in registered}

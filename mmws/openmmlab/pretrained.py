"""Pretrained weights in configs: replace or check those that do not fit a converted network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmws.conversion.layer_types import is_conv, is_norm
from mmws.conversion.parametrize_convs import WEIGHTS, weight_form
from mmws.conversion.replace_norms import NORMS
from mmws.conversion.report import Report
from mmws.conversion.trained_norms import stop_watching_loads_, unused_statistics
from mmws.errors import WSError, without_prefix
from mmws.layers.conv import WeightStandardized
from mmws.openmmlab.config_tree import dicts_in
from mmws.openmmlab.toolkits import TOOLKITS, keeps_bgr
from mmws.openmmlab.weight_hub import GN_WS_WEIGHTS, check_name
from mmws.ops.torch_compat import BatchNorm, add_load_state_dict_pre_hook

__all__ = ['fit_weights', 'frozen_without_weights', 'override_weights']

BACKBONE = 'backbone.'
RGB_INPUT = 'data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)'


def override_weights(config: dict[str, Any], checkpoint: str | None) -> None:
    """Replace every request for weights in ``config`` by ``checkpoint``, in place.

    Without a request, the checkpoint goes to the backbone, or to the type itself if it has no backbone.

    Raises:
        WSError: if the value is not a path, URL or None, the file does not exist, or the name is unknown.
    """
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise WSError(f'ws option pretrained: expected a path, a URL or None, got {checkpoint!r}')
    if checkpoint and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise WSError(f'ws option pretrained: file {checkpoint} not found')
    check_name(checkpoint or '')  # refuses unknown names
    init_cfg = checkpoint and {'type': 'Pretrained', 'checkpoint': checkpoint}
    requests = [(part, key) for _, part in dicts_in(config) for key, value in part.items()
                if (key == 'pretrained' and isinstance(value, str)) or (key == 'init_cfg' and _requests(value))]
    for part, key in requests or [(config.get('backbone', config), 'init_cfg')]:
        part[key] = checkpoint if key == 'pretrained' else init_cfg


def fit_weights(model: nn.Module, report: Report) -> None:
    """Check the weights that a converted ``model`` requests, and replace those that do not fit.

    GN+WS weights replace the BatchNorm weights of an architecture in :data:`GN_WS_WEIGHTS`. Other weights stay, with a
    warning about the parts that load: now if their name is enough to know, otherwise at loading.

    Args:
        model: converted, not yet initialized.
        report: of the conversion.

    Raises:
        WSError: if the published weights are for another architecture, norm or weight form, or the input is BGR.
    """
    requests = list(_pretrained_modules(model, report))
    stop_watching_loads_(model)
    for module in {model, *(module for _, module, _ in requests)}:
        add_load_state_dict_pre_hook(module, _check_part)
        add_load_state_dict_pre_hook(module, _warn_of_statistics)
    for name, module, init_cfg in requests:
        own, weights = _architecture(module), check_name(init_cfg['checkpoint'])
        where = f'{name or "the model"}.init_cfg'
        batch_norm_weights = [f'{source}://{own}' for source in ('torchvision', 'open-mmlab') if own]
        if (report.norm, report.weight) == ('GN', 'ws') and weights in batch_norm_weights:
            print_log(f'mmws: {where}: using the GN+WS weights {GN_WS_WEIGHTS[own]} instead of {weights}, which do not '
                      f'fit; to choose others, set ws=dict(pretrained=...)', 'current', logging.WARNING)
            weights = init_cfg['checkpoint'] = GN_WS_WEIGHTS[own]
        if weights in GN_WS_WEIGHTS.values():
            _check_published(weights, where, module, report)
            if any(map(keeps_bgr, model.modules())):
                raise WSError(f'{where}: the weights {weights} were trained on RGB images, but the data_preprocessor '
                              f'outputs BGR; set {RGB_INPUT}')
        elif '://' in weights:
            norm = NORMS.get(report.norm, NORMS['GN']).name
            method = norm if report.weight == 'plain' else f'{norm} and {WEIGHTS[report.weight][0]}'
            print_log(f'mmws: {where}: the weights {weights} were not trained with {method}. {_load_summary(module)}',
                      'current', logging.WARNING)


def frozen_without_weights(model: nn.Module) -> dict[str, int]:
    """Return ``frozen_stages`` of each backbone in ``model`` that has frozen parameters and no request for weights."""
    requested = [name for name, module in model.named_modules() if _requests(getattr(module, 'init_cfg', None))]
    return {name: module.frozen_stages for name, module in model.named_modules()
            if isinstance(getattr(module, 'frozen_stages', None), int) and module.frozen_stages >= 0
            and not all(parameter.requires_grad for parameter in module.parameters())
            and not any(f'{name}.'.startswith(f'{other}.') or not other for other in requested)}


def _requests(init_cfg: Any) -> list[Any]:
    """Return the requests for pretrained weights in an ``init_cfg``, a dict or a list of dicts."""
    entries = init_cfg if isinstance(init_cfg, list) else [init_cfg]
    return [entry for entry in entries if isinstance(entry, Mapping) and entry.get('type') == 'Pretrained']


def _pretrained_modules(model: nn.Module, report: Report) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Yield name, module and request of each module that requests weights and contains converted layers."""
    changed = [*report.converted, *report.norms]
    for name, module in model.named_modules():
        for request in _requests(getattr(module, 'init_cfg', None)):
            if _has_standardized(module) or any(other.startswith(f'{name}.' if name else '') for other in changed):
                yield name, module, request


def _check_published(weights: str, where: str, module: nn.Module, report: Report) -> None:
    own = _architecture(module)
    is_resnet = type(module).__name__ in ('ResNet', 'ResNeXt', 'ResNetV1c', 'ResNetV1d')
    if is_resnet and GN_WS_WEIGHTS.get(own) != weights:
        raise WSError(f"{where}: the weights {weights} are for that architecture in its v1 form with style='pytorch', "
                      f'but this is {own or _describe(module)}')
    if report.norm not in ('GN', 'keep') or report.weight != 'ws':
        raise WSError(f'{where}: the weights {weights} were trained with GroupNorm and Weight Standardization, not '
                      f'with ws=dict(norm={report.norm!r}, weight={report.weight!r}); '
                      'set ws=dict(pretrained=None) to train from scratch')


def _architecture(module: Any) -> str:
    """Return the key of :data:`GN_WS_WEIGHTS` for a toolkit's ResNet or ResNeXt, '' for other networks."""
    form = [getattr(module, name, None) for name in ('style', 'deep_stem', 'avg_down', 'stem_channels')]
    if form != ['pytorch', False, False, 64] or getattr(module, 'depth', None) not in (50, 101):
        return ''
    widths = {getattr(module, toolkit.group_width, 4) for toolkit in TOOLKITS.values()}
    is_32x4d = (getattr(module, 'groups', 1), widths) == (32, {4})
    names = {'ResNet': f'resnet{module.depth}', 'ResNeXt': f'resnext{module.depth}_32x4d' if is_32x4d else ''}
    return names.get(type(module).__name__, '')


def _describe(module: nn.Module) -> str:
    form = {name: getattr(module, name) for name in ('depth', 'style', 'deep_stem') if hasattr(module, name)}
    return f'{type(module).__name__}({", ".join(f"{name}={value!r}" for name, value in form.items())})'


def _has_standardized(module: nn.Module) -> bool:
    return any(isinstance(part, WeightStandardized) for part in module.modules())


def _load_summary(module: nn.Module) -> str:
    """Return a text about the parts of BatchNorm weights that load into ``module``, and how to choose other weights."""
    forms = [weight_form(part) for part in module.modules() if is_conv(part)]
    form = next((form for form in forms if form != 'plain'), 'plain')
    norms = {name: type(part).__name__ for name, part in module.named_modules()
             if is_norm(part) and not isinstance(part, BatchNorm)}
    short_names = [name.rpartition('.')[2].rstrip('0123456789') for name in norms]
    renamed = [name for name in short_names if name in {norm.prefix for norm in NORMS.values()}]
    became = 'plain' if form == 'plain' else WEIGHTS[form][1]
    although = '' if form == 'plain' else f', although they were not trained to be {became}'
    published = (f' Published GN+WS weights: {", ".join(GN_WS_WEIGHTS.values())}.'
                 if set(norms.values()) <= {'GroupNorm'} and _has_standardized(module) else '')
    return (f'The {forms.count(form)} {became} convolutions load by name{although}; {len(renamed)} of {len(norms)} '
            f'{next(iter(norms.values()), "GroupNorm")}s have other names ({next(iter(renamed), "gn")} instead of bn) '
            f'and do not load.{published} tools/transplant.py makes weights that fit from BatchNorm weights. Set '
            'ws=dict(pretrained=...) to choose other weights; None: from scratch.')


def _check_part(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse weights of a whole model for its backbone, and of a backbone for the whole: mmengine would load nothing.

    A load_state_dict pre-hook.
    """
    own = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    if prefix or own & state_dict.keys():
        return
    for other, part, advice in (
            ({without_prefix(key, BACKBONE) for key in state_dict}, 'a whole model',
             'Load them with load_from=...; ws=dict(pretrained=...) is for the weights of a backbone alone'),
            ({f'{BACKBONE}{key}' for key in state_dict}, 'a backbone alone',
             'Load them with ws=dict(pretrained=...); load_from is for the weights of a whole model')):
        if own & other:
            raise WSError(f'the checkpoint has the weights of {part} ({next(iter(state_dict))}), and none that '
                          f'{type(module).__name__} has ({min(own & other)}). {advice}')


def _warn_of_statistics(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Warn if a checkpoint has running statistics of replaced BatchNorms; a load_state_dict pre-hook."""
    unused = unused_statistics(module, state_dict, prefix)
    if unused:
        print_log(f'mmws: the checkpoint has BatchNorm statistics ({unused[0]} and {len(unused) - 1} more), which do '
                  f'not fit the other norms of this network. {_load_summary(module)}', 'current', logging.WARNING)

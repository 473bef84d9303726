"""Pretrained weights in configs: which of them fit a network that was converted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmws.conversion.module_tree import is_conv
from mmws.conversion.norm_types import is_norm
from mmws.conversion.parametrize_convs import WEIGHTS, weight_form
from mmws.conversion.replace_norms import NORMS
from mmws.conversion.report import Report
from mmws.errors import WSError, near_matches
from mmws.layers.conv import WeightStandardized
from mmws.openmmlab.weight_hub import AUTHORS, SCHEME

__all__ = ['GN_WS_WEIGHTS', 'fit_weights', 'override_weights']

GN_WS_WEIGHTS = {name.removesuffix('_gn_ws'): f'{SCHEME}{name}' for name in AUTHORS}
"""ImageNet weights that the authors trained with GroupNorm and Weight Standardization, by architecture: v1, the stride
in the 3x3 convolution (style='pytorch'), RGB input with torchvision's mean and std. ``open-mmlab://jhu/<name>`` are the
same from the toolkits' mirror alone."""

ABBREVIATIONS = {abbreviation for _, abbreviation in NORMS.values()}
RGB_INPUT = 'data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)'


def override_weights(config: dict[str, Any], checkpoint: str | None) -> None:
    """Put ``ws=dict(pretrained=checkpoint)`` in the place of the weights that ``config`` asks for, in place.

    Where it asks for none, its backbone gets them, or the type itself if it has no backbone.

    Raises:
        WSError: if the value is no path, URL or None, the file is not there, or the name is not known.
    """
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise WSError(f'ws option pretrained: expected a path, a URL or None, got {checkpoint!r}')
    if checkpoint and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise WSError(f'ws option pretrained: there is no file {checkpoint}')
    _check_name(checkpoint or '')
    init_cfg = checkpoint and {'type': 'Pretrained', 'checkpoint': checkpoint}
    if not _override(config, checkpoint, init_cfg):
        config.get('backbone', config)['init_cfg'] = init_cfg


def fit_weights(model: nn.Module, report: Report) -> None:
    """See to it that the weights which the modules of a converted ``model`` ask for fit it.

    The BatchNorm weights of an architecture in :data:`GN_WS_WEIGHTS` give way to those; others stay, with a warning
    that says what they will do: here where their name tells, else when they are loaded.

    Args:
        model: converted, not yet initialized.
        report: of the conversion.

    Raises:
        WSError: if published weights meet another architecture, norm or form of the weights, or an input that is not
            RGB.
    """
    for name, module, init_cfg in _pretrained(model, report):
        where, asked, own = name or 'the model', _one_name(init_cfg['checkpoint']), _architecture(module)
        plain = (f'torchvision://{own}', f'open-mmlab://{own}')
        if (report.norm, report.weight) == ('GN', 'ws') and own and asked in plain:
            init_cfg['checkpoint'] = GN_WS_WEIGHTS[own]
            print_log(f'mmws: {where} gets the GN+WS weights {GN_WS_WEIGHTS[own]} in place of {asked}', 'current')
        elif asked in GN_WS_WEIGHTS.values() and GN_WS_WEIGHTS.get(own or '') != asked and _is_toolkits(module):
            raise WSError(f'{where}.init_cfg: the weights {asked} are for that architecture in its v1 form with '
                          f"style='pytorch', but this is {own or _describe(module)}")
        elif asked in GN_WS_WEIGHTS.values() and (report.norm not in ('GN', 'keep') or report.weight != 'ws'):
            raise WSError(f'{where}.init_cfg: the weights {asked} were trained with GroupNorm and Weight '
                          f'Standardization, not with ws=dict(norm={report.norm!r}, weight={report.weight!r}); '
                          'set ws=dict(pretrained=None) to train from scratch')
        elif '://' in asked and asked not in GN_WS_WEIGHTS.values():
            _check_name(asked)
            print_log(f'mmws: {where} asks for the weights {asked}, which were not trained with '
                      f'{_trained_with(report)}. {_what_loads(module)} {_advice(module)}', 'current', logging.WARNING)
        if _one_name(init_cfg['checkpoint']) in GN_WS_WEIGHTS.values() and _takes_bgr(model):
            raise WSError(f'{where}.init_cfg: the weights {init_cfg["checkpoint"]} were trained on RGB images, but the '
                          f'data_preprocessor hands on BGR; set {RGB_INPUT}')
        _watch(module)
    _watch(model)


def _override(config: Any, checkpoint: str | None, init_cfg: Any) -> int:
    """Replace every request for weights in ``config`` and return how many there were."""
    if isinstance(config, (list, tuple)):
        return sum(_override(part, checkpoint, init_cfg) for part in config)
    if not isinstance(config, dict):
        return 0
    found = 0
    for key, part in config.items():
        if key == 'pretrained' and isinstance(part, str):
            config[key], found = checkpoint, found + 1
        elif key == 'init_cfg' and any(_asks(entry) for entry in (part if isinstance(part, list) else [part])):
            config[key], found = init_cfg, found + 1
        else:
            found += _override(part, checkpoint, init_cfg)
    return found


def _asks(entry: Any) -> bool:
    return isinstance(entry, Mapping) and entry.get('type') == 'Pretrained'


def _one_name(checkpoint: str) -> str:
    return checkpoint.replace('open-mmlab://jhu/', SCHEME)


def _check_name(checkpoint: str) -> None:
    checkpoint = _one_name(checkpoint)
    known = GN_WS_WEIGHTS.values()
    if checkpoint.startswith(SCHEME) and 'gn_ws' in checkpoint and checkpoint not in known:
        raise WSError(f'there are no weights {checkpoint}: {near_matches(checkpoint, known)}')


def _trained_with(report: Report) -> str:
    norm = NORMS[report.norm if report.norm in NORMS else 'GN'][0]
    return norm if report.weight == 'plain' else f'{norm} and {WEIGHTS[report.weight][0]}'


def _pretrained(model: nn.Module, report: Report) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """The modules with something converted that ask for weights, with their names and the request."""
    changed = [*report.converted, *report.norms]
    for name, module in model.named_modules():
        init_cfg: Any = getattr(module, 'init_cfg', None)
        for entry in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
            converted = any(other.startswith(f'{name}.' if name else '') for other in changed)
            if _asks(entry) and (converted or any(map(_is_standardized, module.modules()))):
                yield name, module, entry


def _architecture(module: Any) -> str | None:
    """The key of :data:`GN_WS_WEIGHTS` that a toolkit's ResNet or ResNeXt is, None for any other network."""
    kind, groups = type(module).__name__, getattr(module, 'groups', 1)
    width = getattr(module, 'base_width', getattr(module, 'width_per_group', 4))
    form = [getattr(module, name, None) for name in ('style', 'deep_stem', 'avg_down', 'stem_channels')]
    if form != ['pytorch', False, False, 64] or getattr(module, 'depth', None) not in (50, 101):
        return None
    if kind == 'ResNeXt' and (groups, width) == (32, 4):
        return f'resnext{module.depth}_32x4d'
    return f'resnet{module.depth}' if kind == 'ResNet' else None


def _is_toolkits(module: nn.Module) -> bool:
    return type(module).__name__ in ('ResNet', 'ResNeXt', 'ResNetV1c', 'ResNetV1d')


def _describe(module: nn.Module) -> str:
    form = {name: getattr(module, name) for name in ('depth', 'style', 'deep_stem') if hasattr(module, name)}
    return f'{type(module).__name__}({", ".join(f"{name}={value!r}" for name, value in form.items())})'


def _takes_bgr(model: nn.Module) -> bool:
    """Whether images reach the network as the toolkits load them, in BGR."""
    swaps = ('_channel_conversion', 'channel_conversion', 'to_rgb')  # of the toolkits' preprocessors
    return any(getattr(module, swap, True) is False for module in model.modules() for swap in swaps)


def _is_standardized(module: nn.Module) -> bool:
    return isinstance(module, WeightStandardized)


def _what_loads(module: nn.Module) -> str:
    forms = [weight_form(inner) for inner in module.modules() if is_conv(inner)]
    form = next((form for form in forms if form != 'plain'), 'plain')
    norms = {name: inner for name, inner in module.named_modules() if _is_other_norm(inner)}
    renamed = [name for name in norms if _abbreviation(name) in ABBREVIATIONS]
    became = WEIGHTS[form][1] if form != 'plain' else 'plain'
    though = f', though they were not trained to be {became}' if form != 'plain' else ''
    kind = type(next(iter(norms.values()), nn.GroupNorm(1, 1))).__name__
    abbreviation = _abbreviation(renamed[0]) if renamed else 'gn'
    return (f'The weights of its {forms.count(form)} {became} convolutions will load by name{though}; of its '
            f'{len(norms)} {kind}s {len(renamed)} are named otherwise ({abbreviation} for bn) and will not.')


def _abbreviation(name: str) -> str:
    return name.rpartition('.')[2].rstrip('0123456789')


def _is_other_norm(module: nn.Module) -> bool:
    return is_norm(module) and not isinstance(module, nn.modules.batchnorm._BatchNorm)


def _advice(module: nn.Module) -> str:
    kinds = {type(norm) for norm in module.modules() if _is_other_norm(norm)}
    if kinds - {nn.GroupNorm} or not any(map(_is_standardized, module.modules())):
        return 'ws=dict(pretrained=...) chooses others, where None means from scratch.'
    return (f'Published GN+WS weights: {", ".join(GN_WS_WEIGHTS.values())}; choose with ws=dict(pretrained=...), where '
            'None means from scratch.')


def _watch(module: nn.Module) -> None:
    module.register_load_state_dict_pre_hook(_warn_of_statistics)  # type: ignore[no-untyped-call]


def _warn_of_statistics(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A load_state_dict pre-hook: a checkpoint's running statistics have no place where BatchNorm was replaced."""
    buffers = {f'{prefix}{name}' for name, _ in module.named_buffers()}
    homeless = [key for key in state_dict
                if key.startswith(prefix) and key.endswith('.running_mean') and key not in buffers]
    if homeless:
        print_log(f'mmws: the checkpoint holds BatchNorm statistics ({homeless[0]} and {len(homeless) - 1} more) that '
                  'this network has no place for: it was trained with other norms. '
                  f'{_what_loads(module)} {_advice(module)}', 'current', logging.WARNING)

"""A config that builds a folded network with the toolkit alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import zip_longest
from math import gcd
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmws.conversion.options import Options
from mmws.errors import WSError
from mmws.openmmlab.pretrained import override_weights
from mmws.openmmlab.registry import IMPORTED_WHEN_ASKED_FOR, LAYERS, SCOPE

__all__ = ['check_stock', 'to_stock']

ONLY_CHECKS = ('CheckLabels', 'GuardHook')  # ours that change nothing about the data or the training
OWN_NORMS = [f'{SCOPE}.{name}' for name in ('SN', 'BCN', 'EstBN')]
OWN_LAYERS = {f'{SCOPE}.{name}': layer for name, layer in LAYERS.items()} | {'ConvWS': LAYERS['ConvWS']}


def to_stock(config: Config, folded: nn.Module) -> Config:
    """Return ``config`` without anything of ours: it builds a network that takes the weights of ``folded``.

    The prefix and its options go, and where they replaced BatchNorm ``norm_cfg`` says GroupNorm, the defaults that the
    config does not spell out included. :func:`check_stock` says whether that is all there was.

    Args:
        config: of the network before folding.
        folded: that network, see :func:`mmws.fold`.

    Raises:
        WSError: if the config uses a type of ours that the toolkit has not, or one ``norm_cfg`` would have to say
            different numbers of groups.
    """
    with MODELS.switch_scope_and_registry(config.default_scope):
        stock = Config(_strip(config.to_dict(), '', None, folded), format_python_code=False)
    override_weights(stock.model, None)  # its weights are in the checkpoint
    stock.load_from, stock.resume = None, False
    imports = stock.get('custom_imports')
    if imports:
        imports.imports = [name for name in imports.imports if not name.startswith(SCOPE)]
    return stock


def check_stock(stock: Config, folded: nn.Module) -> None:
    """Build ``stock`` and compare it with ``folded``, module by module and on a picture of noise.

    Raises:
        WSError: naming the first module that differs.
    """
    with MODELS.switch_scope_and_registry(stock.default_scope):
        built = MODELS.build(stock.model)
    built.eval()
    nothing = ('nothing', None)
    for (name, ours), (other, theirs) in zip_longest(_layers(folded), _layers(built), fillvalue=nothing):
        if (name, repr(ours)) != (other, repr(theirs)):
            raise WSError(f'no config of the toolkit alone builds this network: {name} is {ours!r}, but the config '
                          f'builds {other}, {theirs!r}')
    built.load_state_dict(folded.state_dict(), strict=True)
    _check_features(folded, built)


@torch.no_grad()
def _check_features(folded: Any, built: Any) -> None:
    image = torch.randn(1, 3, 128, 128)
    for ours, theirs in zip(folded.extract_feat(image), built.extract_feat(image), strict=True):
        if not (ours - theirs).norm() <= 1e-5 * ours.norm():
            raise WSError('the config of the toolkit alone builds a network that computes something else')


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if not any(True for _ in module.children()))


def _strip(part: Any, where: str, options: Options | None, folded: nn.Module) -> Any:
    """``options`` are those of the prefix around this part of the config, None outside of any."""
    if isinstance(part, (list, tuple)):
        return type(part)(_strip(inner, f'{where}.{i}', options, folded) for i, inner in enumerate(part)
                          if not _only_checks(inner))
    if not isinstance(part, dict):
        return part
    kind = part.get('type')
    if kind in OWN_NORMS:
        raise WSError(f'{where[1:]}: {kind} is a norm of mmws that no toolkit has; the config needs it')
    if kind in OWN_LAYERS:
        plain = OWN_LAYERS[kind].__name__.replace('WS', '')
        return {**{key: value for key, value in part.items() if key != 'eps'}, 'type': plain}
    if isinstance(kind, str) and kind.startswith(f'{SCOPE}.'):
        part, options = _without_prefix(part, where, options)
    stripped = {key: _strip(inner, f'{where}.{key}', options, folded) for key, inner in part.items()
                if not _only_checks(inner)}
    if options and options.norm != 'keep':
        _name_norm_(stripped, where, options.norm, folded)
    return stripped


def _only_checks(part: Any) -> bool:
    return isinstance(part, dict) and part.get('type') in [f'{SCOPE}.{name}' for name in ONLY_CHECKS]


def _without_prefix(part: dict[str, Any], where: str, options: Options | None) -> tuple[dict[str, Any], Options]:
    inner = part['type'].removeprefix(f'{SCOPE}.')
    if inner in IMPORTED_WHEN_ASKED_FOR or not where.startswith('.model'):
        raise WSError(f'{where[1:]}: {part["type"]} is a type of mmws that no toolkit has; the config needs it')
    own = {key: value for key, value in part.get('ws', {}).items() if key != 'pretrained'}
    return {key: value for key, value in part.items() if key != 'ws'} | {'type': inner}, options or Options.parse(own)


def _name_norm_(part: dict[str, Any], where: str, became: str, folded: nn.Module) -> None:
    """Where ``part`` asks for BatchNorm, or is a type that takes it unasked, ask for the norm that it became."""
    norm = part.get('norm_cfg', _default_norm(part.get('type')))
    if isinstance(norm, dict) and 'BN' in str(norm.get('type')):
        if became in ('GN', 'LN'):
            part['norm_cfg'] = {'type': 'GN', 'num_groups': _groups(where.removeprefix('.model').lstrip('.'), folded)}
        elif became == 'IN':
            part['norm_cfg'] = {'type': str(norm['type']).replace('Sync', '').replace('BN', 'IN'), 'affine': True}
        else:
            raise WSError(f'{where[1:]}: ws=dict(norm={became!r}) made its BatchNorm a norm that no toolkit has')


def _default_norm(kind: Any) -> Any:
    """What ``norm_cfg`` is for a type of the toolkit where the config is silent."""
    with MODELS.switch_scope_and_registry(None) as registry:
        try:
            found = registry.get(kind) if isinstance(kind, str) else kind
        except RuntimeError:  # OneDL's mmengine raises where upstream's returns None
            return None
    for base in inspect.getmro(found) if inspect.isclass(found) else ():
        parameter = inspect.signature(base.__init__).parameters.get('norm_cfg')  # type: ignore[misc]
        if parameter is not None:
            return parameter.default
    return None


def _groups(path: str, folded: nn.Module) -> int:
    """The number of groups in the part of the network that stands where its config does."""
    counts: dict[int, str] = {}
    for name, module in folded.named_modules():
        if isinstance(module, nn.GroupNorm) and (name.startswith(f'{path}.') or not path):
            counts.setdefault(module.num_groups, name)
    if len(counts) > 1:
        listed = ' and '.join(f'{name} {count}' for count, name in counts.items())
        raise WSError(f'no config of the toolkit alone builds this network: {listed} groups, where one norm_cfg of '
                      f'{path or "the model"} has to say both; train with ws=dict(num_groups={gcd(*counts)})')
    return next(iter(counts), 32)

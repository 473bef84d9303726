"""Config that builds a folded network with the toolkit alone."""

from __future__ import annotations

import inspect
from functools import partial, reduce
from itertools import zip_longest
from math import gcd
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmws.conversion.options import Options
from mmws.errors import WSError, without_prefix
from mmws.openmmlab.config_tree import dicts_in, map_dicts
from mmws.openmmlab.mmengine_compat import find_type, unformatted_config
from mmws.openmmlab.pretrained import override_weights
from mmws.openmmlab.registry import LAYER_TYPES, LAZY_TYPES, SCOPE

__all__ = ['check_stock', 'to_stock']

ONLY_CHECKS = [f'{SCOPE}.CheckLabels', f'{SCOPE}.GuardHook']  # change neither the data nor the training
STOCK_LAYERS = {'ConvWS': 'Conv2d', **{f'{SCOPE}.{name}': layer.__name__.replace('WS', '')
                                       for name, layer in LAYER_TYPES.items() if 'WS' in layer.__name__}}
REMOVED = object()


def to_stock(config: Config, folded: nn.Module) -> Config:
    """Return a copy of ``config`` without types of mmws, which builds a network for the weights of ``folded``.

    The prefix and its options are removed. Where they replaced BatchNorm, ``norm_cfg`` asks for the new norm, also for
    types that use BatchNorm by default. Call :func:`check_stock` on the result.

    Args:
        config: of the network before folding.
        folded: that network, see :func:`mmws.fold`.

    Raises:
        WSError: if the config uses a type that only mmws has, or a part of the network has norms with different
            numbers of groups.
    """
    tree = config.to_dict()
    norms = {path: (part.get('ws') or {}).get('norm', Options.norm) for path, part in dicts_in(tree)
             if str(part.get('type')).startswith(f'{SCOPE}.')}
    with MODELS.switch_scope_and_registry(config.default_scope):
        change = partial(_to_stock_dict, norms=norms, folded=folded)
        stock = unformatted_config(map_dicts(change, tree))
    override_weights(stock.model, None)  # its weights are in the checkpoint
    stock.load_from, stock.resume = None, False
    imports = stock.get('custom_imports')
    if imports:
        imports.imports = [name for name in imports.imports if not name.startswith(SCOPE)]
    return stock


@torch.no_grad()
def check_stock(stock: Config, folded: Any) -> None:
    """Build ``stock`` and compare it with ``folded``: the modules, and the features of a random image.

    Raises:
        WSError: with the name of the first module that differs.
    """
    with MODELS.switch_scope_and_registry(stock.default_scope):
        built = MODELS.build(stock.model)
    built.eval()
    for (name, expected), (other, actual) in zip_longest(_layers(folded), _layers(built), fillvalue=('nothing', None)):
        if (name, repr(expected)) != (other, repr(actual)):
            raise WSError(f'the toolkit alone cannot build this network: {name} is {expected!r}, but the config builds '
                          f'{other}, {actual!r}')
    built.load_state_dict(folded.state_dict(), strict=True)
    image = torch.randn(1, 3, 128, 128)
    for expected, actual in zip_longest(folded.extract_feat(image), built.extract_feat(image)):
        if not (expected - actual).norm() <= 1e-5 * expected.norm():
            raise WSError('the network that the toolkit alone builds computes different features')


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if not list(module.children())]


def _to_stock_dict(part: dict[str, Any], path: str, norms: dict[str, str], folded: nn.Module) -> Any:
    """Replace the types of mmws in one dict; ``norms`` has the option ``norm`` of each prefix, by path."""
    kind = str(part.get('type'))
    if kind in ONLY_CHECKS:
        return REMOVED
    part = {key: _without_removed(value) for key, value in part.items() if value is not REMOVED}
    if kind in STOCK_LAYERS:
        part.pop('eps', None)
        part['type'] = STOCK_LAYERS[kind]
    elif kind.startswith(f'{SCOPE}.'):
        part.pop('ws', None)
        part['type'] = without_prefix(kind, f'{SCOPE}.')
        if part['type'] in (*LAYER_TYPES, *LAZY_TYPES) or not path.startswith('model'):
            raise WSError(f'{path}: {kind} exists in mmws only; no config of the toolkit alone can use it')
    norm = next((norm for prefix, norm in norms.items() if f'{path}.'.startswith(f'{prefix}.')), 'keep')
    if norm != 'keep':  # the option of the outermost prefix
        _replace_norm_(part, path, norm, folded)
    return part


def _without_removed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_without_removed(inner) for inner in value if inner is not REMOVED)
    return value


def _replace_norm_(part: dict[str, Any], path: str, new: str, folded: nn.Module) -> None:
    """Set the norm that replaced BatchNorm, if ``part`` has BatchNorm in ``norm_cfg`` or as the default of its type."""
    old = part.get('norm_cfg', _default_norm(part.get('type')))
    if isinstance(old, dict) and 'BN' in str(old.get('type')):
        if new in ('GN', 'LN'):
            groups = _num_groups(without_prefix(path, 'model').lstrip('.'), folded)
            part['norm_cfg'] = {'type': 'GN', 'num_groups': groups}
        elif new == 'IN':
            part['norm_cfg'] = {'type': str(old['type']).replace('Sync', '').replace('BN', 'IN'), 'affine': True}
        else:
            raise WSError(f'{path}: ws=dict(norm={new!r}) replaced its BatchNorm by a norm that only mmws has')


def _default_norm(kind: Any) -> Any:
    """Return the default ``norm_cfg`` in the signature of a type: most configs rely on a default BatchNorm."""
    with MODELS.switch_scope_and_registry(None) as registry:
        found = find_type(registry, kind) if isinstance(kind, str) else kind
    parameters = (inspect.signature(base.__init__).parameters.get('norm_cfg') for base in getattr(found, '__mro__', ()))
    return next((parameter.default for parameter in parameters if parameter), None)


def _num_groups(path: str, folded: nn.Module) -> int:
    """Return the number of groups of the GroupNorms in the module at ``path``."""
    first = {module.num_groups: name for name, module in reversed(list(folded.named_modules()))
             if isinstance(module, nn.GroupNorm) and (name.startswith(f'{path}.') or not path)}
    if len(first) > 1:
        listed = ' and '.join(f'{name} {count}' for count, name in sorted(first.items()))
        raise WSError(f'the toolkit alone cannot build this network: {listed} groups, but norm_cfg of '
                      f'{path or "the model"} sets one number; train with ws=dict(num_groups={reduce(gcd, first)})')
    return next(iter(first), 32)

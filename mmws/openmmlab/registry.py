"""The ``mmws.`` scope of mmengine's registries; mmengine imports this module.

``type='mmws.MaskRCNN'`` builds the same model as ``type='MaskRCNN'`` and converts it; see :func:`build`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial, update_wrapper
from importlib import import_module
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import DefaultScope, Registry
from torch import nn

from mmws.conversion.convert import convert_
from mmws.conversion.options import Options
from mmws.conversion.parametrize_convs import written_through
from mmws.errors import WSError, near_matches, without_prefix
from mmws.layers.batch_channel_norm import BatchChannelNorm, EstimatedBatchChannelNorm
from mmws.layers.conv import ConvWS1d, ConvWS2d, ConvWS3d
from mmws.layers.conv_transpose import ConvTransposeWS1d, ConvTransposeWS2d, ConvTransposeWS3d
from mmws.layers.switchable_norm import SwitchableNorm
from mmws.openmmlab.config_tree import map_dicts
from mmws.openmmlab.mmengine_compat import find_type
from mmws.openmmlab.pretrained import fit_weights, frozen_without_weights, override_weights
from mmws.openmmlab.safe_globals import allow_log_history
from mmws.openmmlab.toolkits import SCOPE_ADVICE

__all__ = ['HOOKS', 'LAYER_TYPES', 'LAZY_TYPES', 'MODELS', 'SCOPE', 'TRANSFORMS', 'build']

SCOPE = 'mmws'
LAYER_TYPES = {'ConvWS': ConvWS2d, 'ConvWS1d': ConvWS1d, 'ConvWS2d': ConvWS2d, 'ConvWS3d': ConvWS3d,
               'ConvTransposeWS1d': ConvTransposeWS1d, 'ConvTransposeWS2d': ConvTransposeWS2d,
               'ConvTransposeWS3d': ConvTransposeWS3d,
               'Conv': ConvWS2d, 'Conv1d': ConvWS1d, 'Conv2d': ConvWS2d, 'Conv3d': ConvWS3d,
               'SN': SwitchableNorm, 'BCN': BatchChannelNorm, 'EstBN': EstimatedBatchChannelNorm}
LAZY_TYPES = {'DeepLabV3Head': 'mmws.openmmlab.deeplabv3_head'}
"""Types of mmws that need a toolkit, with the module to import when a config uses one."""


class _PrefixRegistry(Registry):  # type: ignore[misc]
    """A registry that finds the layers of mmws, and all types of the toolkits' registries."""

    def get(self, key: str) -> Callable[..., Any]:
        key = without_prefix(key, f'{SCOPE}.')
        if key in LAYER_TYPES:
            return LAYER_TYPES[key]
        _find(key)  # reports an unknown name before anything is built
        return update_wrapper(partial(build, key), build)  # mmengine < 0.8 logs the `__name__`


allow_log_history()
MODELS = _PrefixRegistry('model', parent=ROOT, scope=SCOPE)
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope=SCOPE, locations=['mmws.openmmlab.guard_hook'])
TRANSFORMS = Registry('transform', parent=ROOT_TRANSFORMS, scope=SCOPE, locations=['mmws.openmmlab.label_check'])
for layer_name, layer in LAYER_TYPES.items():
    MODELS.register_module(layer_name, module=layer)


def build(name: str, *args: Any, ws: dict[str, Any] | None = None, **config: Any) -> nn.Module:
    """Build the type ``name`` of the toolkit and convert it, see :func:`mmws.convert_`.

    mmengine calls this for ``dict(type='mmws.<name>', ws=dict(...), ...)``. The name is looked up in the default
    scope of the config, or in an explicit scope, as in ``mmws.mmdet.ResNet``.

    Args:
        name: the type without the prefix.
        ws: the fields of :class:`mmws.conversion.options.Options`, and ``pretrained``: a path, a URL or None that
            replaces the weights in the config.
        config: the other keys, passed to the toolkit's type.

    Raises:
        WSError: if the name or an option is unknown, or the type is not an nn.Module.

    Example:
        >>> from mmengine.registry import init_default_scope
        >>> init_default_scope('mmdet')
        >>> type(ROOT.build(dict(type='mmws.ResNet', depth=18)).conv1).__name__
        'ConvWS2d'
    """
    if ws is not None and not isinstance(ws, dict):
        raise WSError(f'ws in the config of mmws.{name}: expected a dict, got {ws!r}')
    options = dict(ws or {})
    config = map_dicts(partial(_without_prefix, dict(options)), config, f'mmws.{name}')
    if 'pretrained' in options:
        override_weights(config, options.pop('pretrained'))
    Options.parse(options, also=['pretrained'])
    model = _find(name)(*args, **config)
    if not isinstance(model, nn.Module):
        raise WSError(f'mmws.{name}: expected a network or a part of one, but {name} is a {type(model).__name__}; '
                      'remove the prefix')
    report = convert_(model, **options)
    print_log(f'mmws.{name}: {report.summary()}', logger='current')
    fit_weights(model, report)
    if hasattr(model, 'init_weights') and (report.weight in ('wn', 'spectral') or frozen_without_weights(model)):
        vars(model)['init_weights'] = partial(_initialize, model)
    return model


def _initialize(model: Any) -> None:
    for name, stages in frozen_without_weights(model).items():
        print_log(f'mmws: {name or "the model"}: frozen_stages={stages} keeps random weights: no weights are requested '
                  'for it. Set frozen_stages=-1 to train from scratch, unless load_from has its weights', 'current',
                  logging.WARNING)
    with written_through(model):
        type(model).init_weights(model)


def _without_prefix(ws: dict[str, Any], part: dict[str, Any], path: str) -> dict[str, Any]:
    """Remove the prefix from a type inside a type with the prefix: the outermost one converts the whole network."""
    scope, _, inner = part['type'].partition('.') if isinstance(part.get('type'), str) else ('', '', '')
    if inner.startswith(f'{SCOPE}.'):
        raise WSError(f'{path}.type: the prefix is repeated in {part["type"]!r}')
    if scope == SCOPE and inner not in LAYER_TYPES:
        part['type'] = _find(inner) if inner in LAZY_TYPES else inner
        if part.pop('ws', ws) != ws:
            raise WSError(f'{path}.ws differs from the ws options of the outer mmws. prefix; '
                          'write the options once, on the outermost prefix')
    return part


def _find(name: str) -> Callable[..., Any]:
    """Return the type of mmws, or of the toolkit: in the default scope or in the scope that ``name`` contains."""
    if not name:
        raise WSError(f"type='{SCOPE}.': expected a type after the prefix, as in 'mmws.MaskRCNN'")
    if name in LAZY_TYPES:
        lazy_type: Callable[..., Any] = getattr(import_module(LAZY_TYPES[name]), name)
        return lazy_type
    with ROOT.switch_scope_and_registry(None) as registry:
        found = None if registry.scope == SCOPE else find_type(registry, name)
        if found is None:
            raise WSError(f"unknown type 'mmws.{name}': {_why_unknown(name, registry)}")
        return found


def _why_unknown(name: str, registry: Registry) -> str:
    scope, _, inner = name.rpartition('.')
    if scope:
        return (f'{scope} has no {inner!r}; {near_matches(inner, ROOT.children[scope].module_dict)}'
                if scope in ROOT.children else f'unknown scope {scope!r}; {near_matches(scope, ROOT.children)}')
    if DefaultScope.get_current_instance() is None:
        return f"no default scope; {SCOPE_ADVICE} in the config, or write the scope, as in 'mmws.mmdet.{name}'"
    if registry.scope == SCOPE:
        return f"default_scope={SCOPE!r} is not a toolkit; {SCOPE_ADVICE}, the toolkit of the config's types"
    return f'{registry.scope} has no {name!r}; {near_matches(name, [*registry.module_dict, *ROOT.module_dict])}'

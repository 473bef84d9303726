"""The ``mmws.`` scope: the only door to mmengine's registries, which import this module by themselves.

``type='mmws.MaskRCNN'`` builds what ``type='MaskRCNN'`` builds and converts it; see :func:`build`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
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
from mmws.errors import WSError, near_matches
from mmws.layers.batch_channel_norm import BatchChannelNorm, EstimatedBatchChannelNorm
from mmws.layers.conv import ConvWS1d, ConvWS2d, ConvWS3d
from mmws.layers.conv_transpose import ConvTransposeWS1d, ConvTransposeWS2d, ConvTransposeWS3d
from mmws.layers.switchable_norm import SwitchableNorm
from mmws.openmmlab.pretrained import fit_weights, override_weights
from mmws.openmmlab.safe_globals import allow_log_history

__all__ = ['HOOKS', 'MODELS', 'TRANSFORMS', 'build']

SCOPE = 'mmws'
LAYERS = {'ConvWS': ConvWS2d, 'ConvWS1d': ConvWS1d, 'ConvWS2d': ConvWS2d, 'ConvWS3d': ConvWS3d,
          'ConvTransposeWS1d': ConvTransposeWS1d, 'ConvTransposeWS2d': ConvTransposeWS2d,
          'ConvTransposeWS3d': ConvTransposeWS3d,
          'Conv': ConvWS2d, 'Conv1d': ConvWS1d, 'Conv2d': ConvWS2d, 'Conv3d': ConvWS3d,
          'SN': SwitchableNorm, 'BCN': BatchChannelNorm, 'EstBN': EstimatedBatchChannelNorm}
IMPORTED_WHEN_ASKED_FOR = {'DeepLabV3Head': 'mmws.openmmlab.deeplabv3_head'}


class _PrefixRegistry(Registry):  # type: ignore[misc]
    """A registry in which every name of the toolkit's registries can be found."""

    def get(self, key: str) -> Callable[..., Any]:
        key = key.removeprefix(f'{SCOPE}.')
        if key in LAYERS:
            return LAYERS[key]
        _find(key)  # so that a wrong name is reported before anything is built
        return partial(build, key)


allow_log_history()
MODELS = _PrefixRegistry('model', parent=ROOT, scope=SCOPE)
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope=SCOPE, locations=['mmws.openmmlab.guard_hook'])
TRANSFORMS = Registry('transform', parent=ROOT_TRANSFORMS, scope=SCOPE, locations=['mmws.openmmlab.label_check'])
for layer_name, layer in LAYERS.items():
    MODELS.register_module(layer_name, module=layer)


def build(name: str, *args: Any, ws: dict[str, Any] | None = None, **config: Any) -> nn.Module:
    """Build the type ``name`` of the toolkit and convert it, see :func:`mmws.convert_`.

    mmengine calls this for ``dict(type='mmws.<name>', ws=dict(...), ...)``. The name is looked up in the default
    scope of the config, or in the scope written out, as in ``mmws.mmdet.ResNet``.

    Args:
        name: the type without the prefix.
        ws: the fields of :class:`mmws.conversion.options.Options`, and ``pretrained``: a path, a URL or None in
            place of the weights that the config asks for.
        config: the other keys, handed to the toolkit's type.

    Raises:
        WSError: if the name or an option is unknown, or the type is no nn.Module.

    Example:
        >>> from mmengine.registry import init_default_scope
        >>> init_default_scope('mmdet')
        >>> type(ROOT.build(dict(type='mmws.ResNet', depth=18)).conv1).__name__
        'ConvWS2d'
    """
    if ws is not None and not isinstance(ws, dict):
        raise WSError(f'ws in the config of mmws.{name}: expected a dict, got {ws!r}')
    options = dict(ws or {})
    config = _without_prefix(config, dict(options), f'mmws.{name}')
    if 'pretrained' in options:
        override_weights(config, options.pop('pretrained'))
    Options.parse(options, also=['pretrained'])
    model = _find(name)(*args, **config)
    if not isinstance(model, nn.Module):
        raise WSError(f'mmws.{name}: the prefix is for networks and their parts, '
                      f'but {name} makes a {type(model).__name__}')
    report = convert_(model, **options)
    print_log(f'mmws.{name}: {report.summary()}', logger='current')
    fit_weights(model, report)
    if report.weight in ('wn', 'spectral') and hasattr(model, 'init_weights'):
        vars(model)['init_weights'] = partial(_initialize, model)
    return model


def _initialize(model: Any) -> None:
    with written_through(model):
        type(model).init_weights(model)


def _find(name: str) -> Callable[..., Any]:
    """Our type of that name, or the toolkit's in the default scope, unless the name says which."""
    if not name:
        raise WSError(f"type='{SCOPE}.': expected a type after the prefix, as in 'mmws.MaskRCNN'")
    if name in IMPORTED_WHEN_ASKED_FOR:
        import_module(IMPORTED_WHEN_ASKED_FOR[name])
        own: Callable[..., Any] = MODELS.module_dict[name]
        return own
    with ROOT.switch_scope_and_registry(None) as registry:
        try:
            found: Callable[..., Any] | None = None if registry.scope == SCOPE else registry.get(name)
        except RuntimeError:  # OneDL's mmengine raises where upstream's returns None
            found = None
        if found is None:
            raise WSError(f"unknown type 'mmws.{name}': {_why_unknown(name, registry)}")
        return found


def _why_unknown(name: str, registry: Registry) -> str:
    scope, _, inner = name.rpartition('.')
    if scope:
        return (f'{scope} has no {inner!r}; {near_matches(inner, ROOT.children[scope].module_dict)}'
                if scope in ROOT.children else f'there is no scope {scope!r}; {near_matches(scope, ROOT.children)}')
    if DefaultScope.get_current_instance() is None:
        return (f"no default scope says whose {name} is meant; set default_scope='mmdet' (or 'mmseg') in the config, "
                f"or write the scope out, as in 'mmws.mmdet.{name}'")
    if registry.scope == SCOPE:
        return f"default_scope={SCOPE!r} is no toolkit; set the one whose types the config uses, 'mmdet' or 'mmseg'"
    return f'{registry.scope} has no {name!r}; {near_matches(name, _names(registry))}'


def _names(registry: Registry | None) -> Iterable[str]:
    while registry is not None:
        yield from registry.module_dict
        registry = registry.parent


def _without_prefix(config: Any, options: dict[str, Any], where: str) -> Any:
    """Copy ``config`` with the prefix taken off the types in it: the outermost one converts all that is inside."""
    if isinstance(config, (list, tuple)):
        return type(config)(_without_prefix(part, options, f'{where}[{i}]') for i, part in enumerate(config))
    if not isinstance(config, dict):
        return config
    copy = type(config)({key: _without_prefix(part, options, f'{where}.{key}') for key, part in config.items()})
    scope, _, inner = copy['type'].partition('.') if isinstance(copy.get('type'), str) else ('', '', '')
    if inner.startswith(f'{SCOPE}.'):
        raise WSError(f'{where}.type: the prefix stands twice in {copy["type"]!r}')
    if scope == SCOPE and inner not in LAYERS:
        copy['type'] = _find(inner) if inner in IMPORTED_WHEN_ASKED_FOR else inner
        if copy.pop('ws', options) != options:
            raise WSError(f'{where}.ws differs from the ws options of the mmws. prefix around it; '
                          'write the options once, on the outermost prefix')
    return copy

"""Load a config and check its model key and its toolkit."""

from __future__ import annotations

import argparse
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import yaml
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS

from mmws.errors import FOREIGN_ERRORS, WSError, format_exception, near_matches
from mmws.files import check_input
from mmws.openmmlab.mmengine_compat import external_base
from mmws.openmmlab.stock_configs import stock_config
from mmws.openmmlab.toolkits import SCOPE_ADVICE, TOOLKITS

__all__ = ['CfgOptions', 'load_config', 'silence']

CONFIG_ERRORS = (*FOREIGN_ERRORS, OSError, SyntaxError, yaml.YAMLError)  # a config is a program and can raise them all


class CfgOptions(DictAction):  # type: ignore[misc]
    """Action for ``add_argument``: mmengine's ``NAME=VALUE`` pairs, with a usage error for a malformed one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, TypeError) as error:
            raise argparse.ArgumentError(self, f'expected NAME=VALUE, got {" ".join(values)} ({error})') from None


def load_config(path: str, options: Mapping[str, Any] | None = None,
                needs: Collection[str] = ('model', 'default_scope')) -> Config:
    """Load a config and check it.

    Args:
        path: of the config file.
        options: override values of the file, as ``--cfg-options`` does.
        needs: the required keys.

    Raises:
        WSError: if the file or one of its bases is missing or broken, a required key is missing, ``model`` has no
            type, or ``default_scope`` is not an installed toolkit.
    """
    check_input('config', path)
    try:
        config = Config.fromfile(path)
        config.merge_from_dict(dict(options or {}))
    except WSError as error:
        raise WSError(f'{path}: {error}') from None
    except CONFIG_ERRORS as error:
        base = external_base(error)
        why = _explain_base(base) if base else f'cannot read this config or one of its bases: {format_exception(error)}'
        raise WSError(f'{path}: {why}') from None
    for key in needs:
        if config.get(key) is None or (not config[key] and key != 'test_cfg'):  # mmpretrain's test_cfg is empty
            advice = f'; {SCOPE_ADVICE}' if key == 'default_scope' else ''
            raise WSError(f'{path} has no {key}{advice}')
        if key == 'model':
            _check_model(path, config.model)
    _check_scope(path, config.get('default_scope'))
    return config


def _explain_base(name: str) -> str:
    """Return what to write for a ``<package>::<path>`` that mmengine cannot inherit."""
    try:
        stock_config(name)
    except WSError as error:
        return f'_base_ {name!r}: {error}'
    return f"mmengine cannot inherit {name!r}; write __import__('mmws').stock_config({name!r}) in its place in _base_"


def _check_model(path: str, model: Any) -> None:
    kind = str(model.get('type', '')) if isinstance(model, dict) else ''
    if kind in ('', 'mmws') or kind.startswith('mmws.mmws.'):
        raise WSError(f"{path}: model: expected a type and its arguments, as in dict(type='mmws.MaskRCNN', ...), got "
                      f'{model!r:.80}')


def _check_scope(path: str, scope: Any) -> None:
    with silence(), MODELS.switch_scope_and_registry(scope) as registry:
        if scope and registry.scope != scope:
            raise WSError(f'{path}: default_scope {scope!r} is not an installed toolkit; '
                          f'{near_matches(str(scope), {*TOOLKITS, *MODELS.children})}')


@contextmanager
def silence() -> Iterator[None]:
    """Suppress the prints, warnings and log messages of the toolkits, which repeat them in the run itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    _clear_cached_levels()
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)
        _clear_cached_levels()


def _clear_cached_levels() -> None:
    """Make mmengine's logger notice ``logging.disable``: it caches which levels are enabled."""
    logger = MMLogger.get_current_instance()
    logger.setLevel(logger.level)

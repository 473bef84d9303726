"""Configs read, and models built of them, with the mistakes in them told in one line."""

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

__all__ = ['CfgOptions', 'load_config', 'silence']

BROKEN = (*FOREIGN_ERRORS, OSError, SyntaxError, yaml.YAMLError)  # a config is a program


class CfgOptions(DictAction):  # type: ignore[misc]
    """mmengine's ``NAME=VALUE`` on a command line, for ``add_argument(action=...)``, with its mistakes told."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Put the values into ``namespace``."""
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, TypeError) as error:
            raise argparse.ArgumentError(self, f'expected NAME=VALUE, got {" ".join(values)} ({error})') from None


def load_config(path: str, options: Mapping[str, Any] | None = None,
                needs: Collection[str] = ('model', 'default_scope')) -> Config:
    """Read a config.

    Args:
        path: of the file.
        options: over it, as of ``--cfg-options``.
        needs: the keys that it must have.

    Raises:
        WSError: if it is not there, it or what it inherits cannot be read, a key is missing, its model is no model or
            its default scope is no toolkit.
    """
    check_input('config', path)
    try:
        config = Config.fromfile(path)
        config.merge_from_dict(dict(options or {}))
    except WSError as error:
        raise WSError(f'{path}: {error}') from None
    except BROKEN as error:
        raise WSError(f'{path}, or what it inherits, cannot be read: {format_exception(error)}') from None
    for key in needs:
        if not config.get(key):
            why = "; add default_scope = 'mmdet' (or 'mmseg'), whose types it names" if key == 'default_scope' else ''
            raise WSError(f'{path} has no {key}{why}')
        if key == 'model':
            _check_model(path, config.model)
    _check_scope(path, config.get('default_scope'))
    return config


def _check_model(path: str, model: Any) -> None:
    kind = model.get('type', '') if isinstance(model, dict) else ''
    if kind == '' or str(kind) == 'mmws' or str(kind).startswith('mmws.mmws.'):
        raise WSError(f"{path}: model: expected a type and its arguments, as in dict(type='mmws.MaskRCNN', ...), got "
                      f'{model!r:.80}')


def _check_scope(path: str, scope: Any) -> None:
    with silence(), MODELS.switch_scope_and_registry(scope) as registry:  # the toolkits warn when they are imported
        if scope and registry.scope != scope:
            known = {'mmdet', 'mmseg', *MODELS.children}
            raise WSError(f'{path}: default_scope {scope!r} is no toolkit that is installed; '
                          f'{near_matches(str(scope), known)}')


@contextmanager
def silence() -> Iterator[None]:
    """A block that tells nothing: all of it is said again when the toolkit does the same."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)
        logger = MMLogger.get_current_instance()
        logger.setLevel(logger.level)  # mmengine's loggers remember what was disabled, until this is called

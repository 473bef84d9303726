"""Private names of mmengine, and differences between its two distributions. No other module may use them."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner

from mmws.errors import WSError

__all__ = ['explain_operators', 'external_base', 'find_type', 'requested_checkpoint', 'run_forward', 'set_checkpoint',
           'unformatted_config']


@contextmanager
def explain_operators() -> Iterator[None]:
    """Context that finds or builds a type of a toolkit: mmengine then imports the toolkit, and mmdet imports mmcv.ops.

    Raises:
        WSError: if the import fails because mmcv has no compiled operators, or they are for another torch.
    """
    try:
        yield
    except ImportError as error:
        if error.name not in ('mmcv._ext', '_ext'):  # missing, or not loadable
            raise
        raise WSError(f'mmcv has no compiled operators for this torch ({error}), which mmdet and upstream mmseg need; '
                      'what works without them: layers, conversion, folding, checkpoints, mmpretrain, and the networks '
                      "of OneDL's mmseg that do not import mmcv.ops; to get them, see Install in README.md") from None


def find_type(registry: Registry, name: str) -> Callable[..., Any] | None:
    """Return the registered type, or None if ``name`` is unknown: OneDL's ``get`` raises, upstream's returns None.

    Raises:
        WSError: see :func:`explain_operators`.

    Example:
        >>> from mmengine.registry import MODELS
        >>> find_type(MODELS, 'NoSuchNet') is None
        True
    """
    try:
        with explain_operators():
            found: Callable[..., Any] | None = registry.get(name)
    except RuntimeError:
        return None
    return found


def external_base(error: BaseException) -> str:
    """Return the ``<package>::<path>`` in a ``_base_`` that mmengine could not find; '' if ``error`` has another cause.

    mmengine's messages leave it out. It is in a variable of ``Config._file2dict``, which calls ``_get_cfg_path``.
    """
    calls = {frame.f_code.co_name: frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)}
    base = calls.get('_file2dict', {}).get('base_cfg_path') if '_get_cfg_path' in calls else None
    return base if isinstance(base, str) and '::' in base else ''


def requested_checkpoint(runner: Runner) -> tuple[bool, str | None]:
    """Return whether the run resumes, and the checkpoint in its config (``Runner._resume``, ``Runner._load_from``)."""
    return runner._resume, runner._load_from


def set_checkpoint(runner: Runner, path: str) -> None:
    """Set the checkpoint that ``runner`` loads or resumes from (``Runner._load_from`` has no public setter)."""
    runner._load_from = path


def run_forward(model: Any, data: Any, mode: str) -> Any:
    """Call ``model`` with the dict or sequence that its data preprocessor returned (``BaseModel._run_forward``)."""
    return model._run_forward(data, mode=mode)


def unformatted_config(tree: dict[str, Any]) -> Config:
    """Return a config that mmengine dumps without a formatter, which takes seconds; before 0.8 it always formats."""
    known = inspect.signature(Config.__init__).parameters
    return Config(tree, **({'format_python_code': False} if 'format_python_code' in known else {}))

"""Private names of mmengine, and differences between its two families. No other module may use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.registry import Registry
from mmengine.runner import Runner

__all__ = ['find_type', 'requested_checkpoint', 'run_forward', 'set_checkpoint']


def find_type(registry: Registry, name: str) -> Callable[..., Any] | None:
    """Return the registered type of that name, None if there is none: OneDL's ``get`` raises, upstream's returns None.

    Example:
        >>> from mmengine.registry import MODELS
        >>> find_type(MODELS, 'NoSuchNet') is None
        True
    """
    try:
        found: Callable[..., Any] | None = registry.get(name)
    except RuntimeError:
        return None
    return found


def requested_checkpoint(runner: Runner) -> tuple[bool, str | None]:
    """Return whether ``runner`` is to resume, and the checkpoint that its config names (``Runner._resume``)."""
    return runner._resume, runner._load_from


def set_checkpoint(runner: Runner, path: str) -> None:
    """Let ``runner`` load or resume from ``path`` (``Runner._load_from``; there is no public setter)."""
    runner._load_from = path


def run_forward(model: Any, data: Any, mode: str) -> Any:
    """Call ``model`` on what its data preprocessor returned, a dict or a sequence (``BaseModel._run_forward``)."""
    return model._run_forward(data, mode=mode)

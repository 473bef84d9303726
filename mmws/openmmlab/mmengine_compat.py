"""Private names of mmengine, and differences between its two distributions. No other module may use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.registry import Registry
from mmengine.runner import Runner

__all__ = ['find_type', 'requested_checkpoint', 'run_forward', 'set_checkpoint']


def find_type(registry: Registry, name: str) -> Callable[..., Any] | None:
    """Return the registered type, or None if ``name`` is unknown: OneDL's ``get`` raises, upstream's returns None.

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
    """Return whether the run resumes, and the checkpoint in its config (``Runner._resume``, ``Runner._load_from``)."""
    return runner._resume, runner._load_from


def set_checkpoint(runner: Runner, path: str) -> None:
    """Set the checkpoint that ``runner`` loads or resumes from (``Runner._load_from`` has no public setter)."""
    runner._load_from = path


def run_forward(model: Any, data: Any, mode: str) -> Any:
    """Call ``model`` with the dict or sequence that its data preprocessor returned (``BaseModel._run_forward``)."""
    return model._run_forward(data, mode=mode)

"""A network of a config with the weights of a checkpoint, for the tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmws.checkpoint import read_checkpoint
from mmws.checkpoint.reader import Checkpoint
from mmws.errors import WSError
from mmws.safe_globals import allow_log_history

__all__ = ['load_config', 'load_trained']


def load_config(path: str) -> Config:
    """Read a config that says whose types it uses.

    Raises:
        WSError: if it is not there, or has no model or default scope.
    """
    if not Path(path).is_file():
        raise WSError(f'there is no config {path}')
    config = Config.fromfile(path)
    for key in ('model', 'default_scope'):
        if not config.get(key):
            raise WSError(f'{path} has no {key}')
    return config


def load_trained(config: Config, path: str) -> tuple[nn.Module, Checkpoint]:
    """Build the network of ``config``, in eval mode, with the weights in ``path``, which is read safely.

    Returns:
        The network and the checkpoint.

    Raises:
        WSError: if the checkpoint cannot be read, or does not fit to the last tensor.
    """
    allow_log_history()
    checkpoint = read_checkpoint(path)
    with MODELS.switch_scope_and_registry(config.default_scope):
        model: Any = MODELS.build(config.model)
    try:
        model.load_state_dict(checkpoint.tensors, strict=True)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:3]]
        raise WSError(f'{path} does not fit {config.filename}: {" ".join(reasons):.300}') from None
    model.eval()
    return model, checkpoint

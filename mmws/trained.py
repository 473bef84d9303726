"""A network of a config with the weights of a checkpoint, for the tools."""

from __future__ import annotations

from mmengine.config import Config
from torch import nn

from mmws.checkpoint import read_checkpoint
from mmws.checkpoint.reader import Checkpoint
from mmws.config_file import build_model
from mmws.errors import WSError
from mmws.safe_globals import allow_log_history

__all__ = ['check_weights', 'load_trained']


def load_trained(config: Config, path: str) -> tuple[nn.Module, Checkpoint]:
    """Build the network of ``config``, in eval mode, with the weights in ``path``, which is read safely.

    Returns:
        The network and the checkpoint.

    Raises:
        WSError: if the checkpoint cannot be read, or does not fit to the last tensor.
    """
    allow_log_history()
    checkpoint = read_checkpoint(path)
    model = build_model(config)
    try:
        model.load_state_dict(checkpoint.tensors, strict=True)
    except RuntimeError as error:
        raise _misfit(config, path, error) from None
    model.eval()
    return model, checkpoint


def check_weights(config: Config, model: nn.Module, path: str) -> None:
    """Load weights as mmengine's ``load_checkpoint`` would, which goes on without those that do not fit.

    Args:
        config: of the model.
        model: gets the weights.
        path: of the checkpoint, which is read safely; it may hold more than the model takes.

    Raises:
        WSError: if the checkpoint cannot be read, or a parameter has no weight of its shape in it.
    """
    allow_log_history()
    tensors = {name.removeprefix('module.'): tensor for name, tensor in read_checkpoint(path).tensors.items()}
    try:
        missing = set(model.load_state_dict(tensors, strict=False).missing_keys)
    except RuntimeError as error:
        raise _misfit(config, path, error) from None
    without = [name for name, _ in model.named_parameters() if name in missing]
    if without:
        raise WSError(f'{path} does not fit {config.filename}: it has no weights for {len(without)} parameters of the '
                      f'model, such as {", ".join(without[:3])}')


def _misfit(config: Config, path: str, error: RuntimeError) -> WSError:
    reasons = [line.strip() for line in str(error).splitlines()[1:3]]
    return WSError(f'{path} does not fit {config.filename}: {" ".join(reasons):.300}')

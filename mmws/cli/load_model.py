"""A network of a config with the weights of a checkpoint, for the tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmws.checkpoint import read_checkpoint
from mmws.checkpoint.reader import Checkpoint
from mmws.cli.config import silence
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception, near_matches
from mmws.openmmlab.safe_globals import allow_log_history

__all__ = ['build_model', 'check_model', 'check_weights', 'load_trained']


LAYERS = ('conv_cfg', 'norm_cfg', 'act_cfg')


def build_model(config: Config) -> nn.Module:
    """Build the network of a config.

    Raises:
        WSError: if it cannot be built as the config says.
    """
    with MODELS.switch_scope_and_registry(config.default_scope) as registry:
        try:
            model: nn.Module = MODELS.build(config.model)
        except WSError:
            raise
        except (*FOREIGN_ERRORS, OSError) as error:
            unknown = [name for name in _layer_types(config.model) if registry.get(name) is None]
            why = (f'there is no layer {unknown[0]!r}; {near_matches(unknown[0], MODELS.module_dict)}'
                   if unknown and 'None' in str(error) else format_exception(error))  # mmcv says None for the name
            raise WSError(f'{config.filename}: its model cannot be built: {why}') from None
    return model


def check_model(config: Config, checkpoint: str = '', to_the_last: bool = False) -> None:
    """Build the model, before anything is written.

    Args:
        config: says which.
        checkpoint: to look into, unless it is on a server.
        to_the_last: whether the checkpoint has to have a weight for each parameter.

    Raises:
        WSError: if the model cannot be built as the config says, or the checkpoint cannot be read or does not fit.
    """
    with silence():
        model = build_model(config)
        if checkpoint and '://' not in checkpoint:
            allow_log_history()
            check_weights(config, model, checkpoint) if to_the_last else read_checkpoint(checkpoint)


def _layer_types(config: Any) -> Iterator[str]:
    """What stands as ``type`` where a convolution, a norm or an activation is asked for."""
    if isinstance(config, dict):
        for key, part in config.items():
            if key in LAYERS and isinstance(part, dict) and isinstance(part.get('type'), str):
                yield part['type']
            yield from _layer_types(part)
    elif isinstance(config, (list, tuple)):
        for part in config:
            yield from _layer_types(part)


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

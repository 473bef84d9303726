"""Build the model of a config and load the weights of a checkpoint into it."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmws.checkpoint import read_checkpoint
from mmws.checkpoint.reader import Checkpoint
from mmws.cli.config import silence
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception, near_matches, without_prefix
from mmws.openmmlab.config_tree import dicts_in
from mmws.openmmlab.mmengine_compat import explain_operators, find_type
from mmws.openmmlab.safe_globals import allow_log_history

__all__ = ['build_model', 'check_model', 'load_trained']

LAYER_KEYS = ('conv_cfg', 'norm_cfg', 'act_cfg')


def check_model(config: Config, checkpoint: str = '', needs_all_weights: bool = False) -> None:
    """Build the model and read the checkpoint, so that a mistake is reported before anything is written.

    Args:
        config: of the model.
        checkpoint: its path; an empty string or a URL is not read.
        needs_all_weights: check that the checkpoint has a weight for each parameter. mmengine ignores missing ones.

    Raises:
        WSError: if the model cannot be built, or the checkpoint cannot be read or does not fit.
    """
    with silence():
        model = build_model(config)
        if checkpoint and '://' not in checkpoint:
            tensors = _read(checkpoint).tensors
            if needs_all_weights:
                tensors = {without_prefix(name, 'module.'): tensor for name, tensor in tensors.items()}
                _load_weights(config, model, checkpoint, tensors, strict=False)


def load_trained(config: Config, path: str) -> tuple[nn.Module, Checkpoint]:
    """Build the model of ``config`` in eval mode and load the checkpoint ``path`` with the safe reader.

    Returns:
        The model and the checkpoint.

    Raises:
        WSError: if the checkpoint cannot be read, or its names and shapes differ from those of the model.
    """
    checkpoint = _read(path)
    model = build_model(config)
    _load_weights(config, model, path, checkpoint.tensors, strict=True)
    model.eval()
    return model, checkpoint


def _read(path: str) -> Checkpoint:
    allow_log_history()
    return read_checkpoint(path)


def build_model(config: Config) -> nn.Module:
    """Build the model of a config, without weights.

    Raises:
        WSError: if it cannot be built; the message names an unknown layer.
    """
    with MODELS.switch_scope_and_registry(config.default_scope) as registry:
        try:
            with explain_operators():
                return MODELS.build(config.model)  # type: ignore[no-any-return]
        except WSError:
            raise
        except (*FOREIGN_ERRORS, OSError) as error:
            types = [part.get('type') for path, part in dicts_in(config.model) if path.split('.')[-1] in LAYER_KEYS]
            unknown = [name for name in types if isinstance(name, str) and find_type(registry, name) is None]
            why = (f'unknown layer {unknown[0]!r}; {near_matches(unknown[0], MODELS.module_dict)}'
                   if unknown and 'None' in str(error) else format_exception(error))  # mmcv prints None for its name
            raise WSError(f'{config.filename}: cannot build the model: {why}') from None


def _load_weights(config: Config, model: nn.Module, path: str, tensors: dict[str, Tensor], strict: bool) -> None:
    """Load all parameters, or raise; without ``strict``, ``tensors`` may contain more, and lack buffers."""
    try:
        missing = set(model.load_state_dict(tensors, strict=strict).missing_keys)
    except RuntimeError as error:
        reasons = ' '.join(line.strip() for line in str(error).splitlines()[1:3])
        raise WSError(f'{path} does not fit {config.filename}: {reasons:.300}') from None
    names = [name for name, _ in model.named_parameters() if name in missing]
    if names:
        raise WSError(f'{path} does not fit {config.filename}: it has no weights for {len(names)} parameters of the '
                      f'model, such as {", ".join(names[:3])}')

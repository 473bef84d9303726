"""Hook: stop on NaN or Inf; resume from an intact checkpoint."""

from __future__ import annotations

import re
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint

from mmws.errors import WSError
from mmws.openmmlab.find_nan import find_nan, first_three, is_finite
from mmws.openmmlab.mmengine_compat import requested_checkpoint, set_checkpoint
from mmws.openmmlab.registry import HOOKS
from mmws.ops.torch_compat import add_step_pre_hook, get_total_norm

__all__ = ['GuardHook', 'newest_intact']


@HOOKS.register_module()
class GuardHook(Hook):  # type: ignore[misc]
    """Stop a training at the first NaN or Inf in the loss or a gradient; resume from an intact checkpoint.

    The hook checks the gradients, and with them the loss, before each update. So the weights and the last checkpoint
    stay valid. A second pass over the same images then finds the layer that produces the first NaN or Inf. If the
    newest checkpoint is truncated, ``--resume`` takes the one before it.

    Use it in a config as ``default_hooks = dict(guard=dict(type='mmws.GuardHook'))``, or on the command line as
    ``--cfg-options default_hooks.guard.type=mmws.GuardHook``.

    Raises:
        WSError: with the step, the layer and the checkpoint to resume from; on resume, if no checkpoint is intact.

    Example:
        >>> GuardHook().priority
        'NORMAL'
    """

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from."""
        resume, requested = requested_checkpoint(runner)
        path = (requested or find_latest_checkpoint(runner.work_dir)) if resume else None
        if path is None or '://' in path or (path and _is_intact(Path(path))):
            return
        problem = f'the checkpoint {path or "named in last_checkpoint"} is ' + (
            'missing' if path and not Path(path).exists() else 'truncated or damaged')
        newest = newest_intact(Path(path).parent if path else Path(runner.work_dir))
        if newest is None:
            raise WSError(f'{problem}, and its folder has no intact one; start without --resume, in another work_dir')
        if requested:
            raise WSError(f'{problem}; resume from {newest}')
        runner.logger.warning(f'{problem}; resuming from {newest}, the newest intact one')
        set_checkpoint(runner, str(newest))

    def before_train(self, runner: Runner) -> None:
        """Check the gradients before each update."""
        wrapper = runner.optim_wrapper
        for each in [wrapper] if isinstance(wrapper, OptimWrapper) else wrapper.values():
            add_step_pre_hook(each.optimizer, lambda optimizer, *_: self._check_gradients(runner, optimizer))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the batch for :func:`mmws.openmmlab.find_nan.find_nan`."""
        self.batch = data_batch

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict[str, Any] | None = None) -> None:
        """Check the loss of steps without an update: gradients accumulate, or a gradient scaler skips the update."""
        if not is_finite([value for name, value in (outputs or {}).items() if 'loss' in name]):
            raise WSError(_nan_message(runner, self.batch))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights with NaN or Inf."""
        bad = [name for name, parameter in runner.model.named_parameters() if not is_finite(parameter)]
        if bad:
            raise WSError(f'step {runner.iter + 1}: NaN or Inf in {first_three(bad)} after the update, not saved; '
                          f'{_advice(runner)}')

    def _check_gradients(self, runner: Runner, optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # one norm: a check of each gradient would wait for the GPU each time
        if gradients and not is_finite(get_total_norm(gradients, norm_type=torch.inf)):
            raise WSError(_nan_message(runner, self.batch))


def _is_intact(path: Path) -> bool:
    """Return whether a checkpoint is a complete zip file with correct checksums, or a folder (of a strategy)."""
    try:
        with zipfile.ZipFile(path) as checkpoint:
            return checkpoint.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return path.is_dir()


def newest_intact(folder: Path) -> Path | None:
    """Return the checkpoint of the latest step or epoch in ``folder`` that is not truncated; None without any."""
    found = [(int(match[1]), path) for path in folder.glob('*.pth')
             if (match := re.search(r'(?:iter|epoch)_(\d+)$', path.stem))]
    return next((path for _, path in sorted(found, reverse=True) if _is_intact(path)), None)


def _advice(runner: Runner) -> str:
    checkpoint = find_latest_checkpoint(runner.work_dir) if Path(runner.work_dir, 'last_checkpoint').exists() else None
    rates = runner.optim_wrapper.get_lr()
    rate = max(rates.get('lr', rates.get('base_lr', [float('nan')])))
    return (f'the last good checkpoint is {checkpoint}' if checkpoint else 'no checkpoint exists yet') + (
        f'. Try a lower learning rate (now {rate:.3g}), a longer warm-up, or optim_wrapper.clip_grad')


def _nan_message(runner: Runner, batch: Any) -> str:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    with runner.optim_wrapper.optim_context(model) if isinstance(runner.optim_wrapper, OptimWrapper) else nullcontext():
        return f'step {runner.iter + 1}: {find_nan(model, batch)}. The weights are still valid; {_advice(runner)}'

"""A hook that keeps what a training has reached."""

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
from torch.nn.utils import get_total_norm

from mmws.errors import WSError
from mmws.openmmlab.diagnosis import diagnose, is_finite, some
from mmws.openmmlab.registry import HOOKS

__all__ = ['GuardHook']


@HOOKS.register_module()
class GuardHook(Hook):  # type: ignore[misc]
    """Stops a training at the first loss or gradient that is not finite; resumes from a checkpoint that is whole.

    The gradients, and with them the loss, are looked at before each update: the weights stay as they were, and the last
    checkpoint is a good one. A second pass over the same images then finds the layer that gives the first value that
    is not finite. On ``--resume``, where the newest checkpoint was cut off, the one before it is taken.

    Use it in a config as ``default_hooks = dict(guard=dict(type='mmws.GuardHook'))``, or on the command line as
    ``--cfg-options default_hooks.guard.type=mmws.GuardHook``.

    Raises:
        WSError: with the step, the layer and the checkpoint to go on from; on resuming, if no checkpoint is whole.

    Example:
        >>> GuardHook().priority
        'NORMAL'
    """

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from."""
        wanted = runner._load_from or find_latest_checkpoint(runner.work_dir) if runner._resume else None
        if wanted is None or '://' in wanted or (wanted and _whole(Path(wanted))):
            return
        found = _newest_whole(Path(wanted).parent if wanted else Path(runner.work_dir))
        what = f'the checkpoint {wanted or "named in last_checkpoint"} is ' + (
            'cut off or damaged' if not wanted or Path(wanted).exists() else 'not there')
        if found is None or runner._load_from:
            raise WSError(f'{what}; ' + (f'resume from {found}' if found else 'none beside it is whole: start without '
                                                                             '--resume, in another work_dir'))
        runner.logger.warning(f'{what}: resuming from {found}, the newest that is whole')
        runner._load_from = str(found)

    def before_train(self, runner: Runner) -> None:
        """Look at the gradients before each update from here on."""
        wrapper = runner.optim_wrapper
        for each in [wrapper] if isinstance(wrapper, OptimWrapper) else wrapper.values():
            each.optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: self._check(runner, optimizer))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep hold of the images of this step."""
        self.batch = data_batch

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict[str, Any] | None = None) -> None:
        """Look at the loss, where no update was made: gradients add up, or a scaler passed over it."""
        if not is_finite([value for name, value in (outputs or {}).items() if 'loss' in name]):
            raise WSError(_diagnosis(runner, self.batch))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse to write weights that are not finite."""
        spoilt = [name for name, parameter in runner.model.named_parameters() if not is_finite(parameter)]
        if spoilt:
            raise WSError(f'step {runner.iter + 1}: the update has made {some(spoilt)} infinite or NaN, which is not '
                          f'saved; {_advice(runner)}')

    def _check(self, runner: Runner, optimizer: torch.optim.Optimizer) -> None:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group['params']
                     if parameter.grad is not None]
        if gradients and not is_finite(get_total_norm(gradients, norm_type=torch.inf)):
            raise WSError(_diagnosis(runner, self.batch))


def _whole(path: Path) -> bool:
    """Whether a checkpoint is all there: it is a zip, with its table at the end and a checksum for each tensor.

    A strategy of mmengine may have written a folder instead, of which nothing is known.
    """
    try:
        with zipfile.ZipFile(path) as checkpoint:
            return checkpoint.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return path.is_dir()


def _newest_whole(folder: Path) -> Path | None:
    steps = {path: re.search(r'(?:iter|epoch)_(\d+)$', path.stem) for path in folder.glob('*.pth')}
    newest_first = sorted((path for path in steps if steps[path]), key=lambda path: -int(steps[path][1]))  # type: ignore[index]
    return next(filter(_whole, newest_first), None)


def _advice(runner: Runner) -> str:
    checkpoint = find_latest_checkpoint(runner.work_dir) if Path(runner.work_dir, 'last_checkpoint').exists() else None
    rates = runner.optim_wrapper.get_lr()
    rate = max(rates.get('lr', rates.get('base_lr', [float('nan')])))
    return (f'the last good checkpoint is {checkpoint}' if checkpoint else 'there is no checkpoint yet') + (
        f'. Try a lower learning rate (it is {rate:.3g} now), a longer warm-up, or optim_wrapper.clip_grad')


def _diagnosis(runner: Runner, batch: Any) -> str:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    wrapper = runner.optim_wrapper
    with wrapper.optim_context(model) if isinstance(wrapper, OptimWrapper) else nullcontext():
        return f'step {runner.iter + 1}: {diagnose(model, batch)}. No weight is spoilt; {_advice(runner)}'

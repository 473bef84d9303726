"""A hook that records a training, and autocast on CPU. The trainings of these checks import it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmcv.ops.nms import NMSop
from mmcv.ops.roi_align import RoIAlign
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS


def digest(state) -> str:
    """Return a hash of all tensors and numbers in nested containers."""
    digest = hashlib.sha256()
    for leaf in torch.utils._pytree.tree_leaves(state):
        digest.update(leaf.contiguous().numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    return digest.hexdigest()


@HOOKS.register_module()
class RecordHook(Hook):
    """Write a line at the start or resume and a line per step to ``record.jsonl``, on rank 0 only."""

    priority = 'VERY_LOW'

    def write(self, runner, **line):
        if int(os.environ.get('RANK', 0)) == 0:
            with Path(runner.work_dir, 'record.jsonl').open('a') as file:
                file.write(json.dumps(line) + '\n')

    def before_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        self.write(runner, start=runner.iter, weights=digest(dict(model.state_dict())),
                   optimizer=digest(runner.optim_wrapper.state_dict()),
                   schedule=[each.last_step for each in runner.param_schedulers])

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.images = [Path(sample.img_path).name for sample in data_batch['data_samples']]
        self.rate = runner.optim_wrapper.get_lr()['lr'][0]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.write(runner, step=runner.iter + 1, images=self.images, rate=self.rate, loss=float(outputs['loss']))


# mmcv's CPU kernels support only float32.
NMSop.forward = staticmethod(torch.amp.custom_fwd(NMSop.forward, device_type='cpu', cast_inputs=torch.float32))
roi_align = RoIAlign.forward
RoIAlign.forward = lambda self, image, rois: roi_align(self, image.float(), rois.float()).to(image.dtype)


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's wrapper for GPUs, with torch's autocast and scaler for CPU."""

    def __init__(self, dtype: str, **settings) -> None:
        OptimWrapper.__init__(self, **settings)
        self.cast_dtype = getattr(torch, dtype)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler('cpu', enabled=dtype == 'float16')

    @contextmanager
    def optim_context(self, model) -> Iterator[None]:
        with OptimWrapper.optim_context(self, model), torch.autocast('cpu', dtype=self.cast_dtype):
            yield

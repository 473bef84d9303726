"""GuardHook in mmengine's runner."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmws import ConvWS2d, WSError
from mmws.checkpoint import read_checkpoint
from mmws.openmmlab.safe_globals import allow_log_history
from tests.helpers.commands import REPOSITORY, run


class Act(nn.Module):
    bad = False

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values * 0).log() if self.bad else values.relu()


class Net(BaseModel):
    """Produces NaN or Inf at step ``bad``, in the part ``how``."""

    def __init__(self, bad: int = 0, how: str = '') -> None:
        super().__init__()
        self.conv = ConvWS2d(1, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.act = Act()
        self.head = nn.Conv2d(4, 1, 1)
        self.bad, self.how = bad, how

    def forward(self, inputs: torch.Tensor, data_samples: object = None, mode: str = 'loss') -> dict[str, torch.Tensor]:
        last = bool((inputs == self.bad).all())
        out = self.norm(self.conv(inputs * torch.rand_like(inputs)))
        self.act.bad = last and self.how == 'layer'
        out = self.head(self.act(out))
        if last and self.how == 'gradient':
            return {'loss': (out * 0).square().sum().sqrt()}
        if last and self.how == 'update':
            out = out + 1e3 * self.head.bias.sum()
        return {'loss': out.square().mean() * (math.nan if last and self.how == 'loss' else 1)}


def runner(work_dir: Path, model: Net, steps: int = 6, interval: int = 2, **settings: object) -> Runner:
    images = [torch.full((1, 8, 8), float(step)) for step in range(1, 9)]
    checkpoint = {'type': 'CheckpointHook', 'by_epoch': False, 'interval': interval, 'max_keep_ckpts': 2}
    return Runner(model, str(work_dir), DataLoader(images, collate_fn=lambda batch: {'inputs': torch.stack(batch)}),
                  train_cfg={'by_epoch': False, 'max_iters': steps},
                  optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}, **settings.pop('optim_wrapper', {})},
                  default_hooks={'guard': {'type': 'mmws.GuardHook'}, 'checkpoint': checkpoint},
                  experiment_name=f'{work_dir.name}_{steps}', **settings)


@pytest.mark.parametrize(('how', 'message'), [
    ('loss', r'^step 5: the loss is not finite \(loss nan\); the first NaN or Inf comes from the loss itself\. '
             r'The weights are still valid; the last good checkpoint is .*iter_4\.pth\. '
             r'Try a lower learning rate \(now 0\.1\), a longer warm-up'),
    ('layer', r'^step 5: .* comes from act \(Act\)\. The weights'),
    ('gradient', r'^step 5: the loss is finite \(loss 0\), its gradient is not: backward from head\. The weights'),
])
@pytest.mark.parametrize('wrapper', [{}, {'clip_grad': {'max_norm': 1}}, {'accumulative_counts': 2}])
def test_training_stops_before_nan_reaches_a_weight(how, message, wrapper, tmp_path):
    train = runner(tmp_path, Net(5, how), optim_wrapper=wrapper)
    if how == 'gradient' and 'accumulative_counts' in wrapper:  # the check runs at the update, one step later
        message = 'step 6: .* its gradient is not: an earlier accumulated batch'
    with pytest.raises(WSError, match=message):
        train.train()
    assert all(bool(weight.isfinite().all()) for weight in train.model.parameters())
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_4.pth')


def test_weights_with_nan_after_an_update_are_not_saved(tmp_path):
    train = runner(tmp_path, Net(1, 'update'), interval=1, optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 1e38}})
    with pytest.raises(WSError, match=r'^step 1: NaN or Inf in .* after the update, not saved; no checkpoint exists'):
        train.train()
    assert not list(tmp_path.glob('*.pth'))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {'truncated': lambda folder: (folder / 'iter_6.pth').write_bytes((folder / 'iter_6.pth').read_bytes()[:-999]),
          'empty': lambda folder: (folder / 'iter_6.pth').write_bytes(b''),
          'a bit': lambda folder: flip(folder / 'iter_6.pth'),
          'the pointer': lambda folder: [(folder / 'last_checkpoint').write_text(''), flip(folder / 'iter_6.pth')]}


@pytest.mark.parametrize('damage', DAMAGE)
def test_resume_skips_a_damaged_checkpoint(damage, tmp_path, capfd):
    runner(tmp_path, Net()).train()
    DAMAGE[damage](tmp_path)
    again = runner(tmp_path, Net(), steps=8, resume=True)
    again.call_hook('before_run')
    again.load_or_resume()
    allow_log_history()
    expected = read_checkpoint(tmp_path / 'iter_4.pth').tensors
    torch.testing.assert_close(again.model.state_dict(), expected, rtol=0, atol=0)
    assert again.iter == 4
    output = capfd.readouterr().out
    assert re.search(r'truncated or damaged; resuming from .*iter_4\.pth, the newest intact one', output)


def test_resume_without_an_intact_checkpoint_is_an_error(tmp_path):
    runner(tmp_path, Net()).train()
    for file in tmp_path.glob('*.pth'):
        flip(file)
    message = r'iter_6\.pth is truncated or damaged, and its folder has no intact one; start without --resume'
    with pytest.raises(WSError, match=message):
        runner(tmp_path, Net(), resume=True).train()


@pytest.mark.parametrize(('damage', 'problem'), [(flip, 'truncated or damaged'), (Path.unlink, 'missing')])
def test_a_damaged_checkpoint_in_load_from_is_an_error(damage, problem, tmp_path):
    runner(tmp_path, Net()).train()
    damage(tmp_path / 'iter_6.pth')
    with pytest.raises(WSError, match=rf'iter_6\.pth is {problem}; resume from .*iter_4\.pth'):
        runner(tmp_path, Net(), resume=True, load_from=str(tmp_path / 'iter_6.pth')).train()


def test_hooks_run_in_an_optimizer_first_used_after_torch_compile():
    code = """
import torch
from mmws.ops.torch_compat import add_step_pre_hook
torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1))
weight = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.Adagrad([weight], 0.1)
add_step_pre_hook(optimizer, lambda *_: print('before the step'))
weight.grad = torch.ones(1)
optimizer.step()
"""
    result = run(sys.executable, '-c', code, folder=REPOSITORY)
    assert result.stdout == 'before the step\n', result.stderr

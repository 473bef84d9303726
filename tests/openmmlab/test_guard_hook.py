"""The hook that guards a training, in mmengine's own runner."""

import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmws import ConvWS2d, WSError
from mmws.openmmlab.safe_globals import allow_log_history


class Act(nn.Module):
    bad = False

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values * 0).log() if self.bad else values.relu()


class Net(BaseModel):
    """At step ``bad``, as ``how`` says, something is not finite."""

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
    ('loss', r'^step 5: the loss is not finite \(loss nan\); the first values that are not come from it\. No weight is '
             r'spoilt; the last good checkpoint is .*iter_4\.pth\. Try a lower learning rate \(it is 0\.1 now\)'),
    ('layer', r'^step 5: .* come from act \(Act\)\. No weight'),
    ('gradient', r'^step 5: the loss is finite \(loss 0\), its gradient is not: back from head\. No weight'),
])
@pytest.mark.parametrize('wrapper', [{}, {'clip_grad': {'max_norm': 1}}, {'accumulative_counts': 2}])
def test_a_training_stops_before_a_weight_is_spoilt(how, message, wrapper, tmp_path):
    train = runner(tmp_path, Net(5, how), optim_wrapper=wrapper)
    if how == 'gradient' and 'accumulative_counts' in wrapper:  # known with the update, at the next step
        message = 'step 6: .* its gradient is not: it comes from an earlier batch'
    with pytest.raises(WSError, match=message):
        train.train()
    assert all(bool(weight.isfinite().all()) for weight in train.model.parameters())
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_4.pth')


def test_weights_that_an_update_spoils_are_not_saved(tmp_path):
    train = runner(tmp_path, Net(1, 'update'), interval=1, optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 1e38}})
    with pytest.raises(WSError, match=r'^step 1: the update has made .*, which is not saved; there is no checkpoint'):
        train.train()
    assert not list(tmp_path.glob('*.pth'))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {'cut off': lambda folder: (folder / 'iter_6.pth').write_bytes((folder / 'iter_6.pth').read_bytes()[:-999]),
          'empty': lambda folder: (folder / 'iter_6.pth').write_bytes(b''),
          'a bit': lambda folder: flip(folder / 'iter_6.pth'),
          'the pointer': lambda folder: [(folder / 'last_checkpoint').write_text(''), flip(folder / 'iter_6.pth')]}


@pytest.mark.parametrize('damage', DAMAGE)
def test_resuming_passes_over_a_broken_checkpoint(damage, tmp_path, capfd):
    runner(tmp_path, Net()).train()
    DAMAGE[damage](tmp_path)
    again = runner(tmp_path, Net(), steps=8, resume=True)
    again.call_hook('before_run')
    again.load_or_resume()
    allow_log_history()
    expected = torch.load(tmp_path / 'iter_4.pth', weights_only=True)['state_dict']
    torch.testing.assert_close(again.model.state_dict(), expected, rtol=0, atol=0)
    assert again.iter == 4
    said = capfd.readouterr().out
    assert re.search(r'cut off or damaged: resuming from .*iter_4\.pth, the newest that is whole', said)


def test_where_nothing_is_whole_it_does_not_start_anew(tmp_path):
    runner(tmp_path, Net()).train()
    for file in tmp_path.glob('*.pth'):
        flip(file)
    with pytest.raises(WSError, match=r'iter_6\.pth is cut off or damaged; none beside it is whole: start without'):
        runner(tmp_path, Net(), resume=True).train()


@pytest.mark.parametrize(('damage', 'what'), [(flip, 'cut off or damaged'), (Path.unlink, 'not there')])
def test_a_broken_checkpoint_that_was_named_is_an_error(damage, what, tmp_path):
    runner(tmp_path, Net()).train()
    damage(tmp_path / 'iter_6.pth')
    with pytest.raises(WSError, match=rf'iter_6\.pth is {what}; resume from .*iter_4\.pth'):
        runner(tmp_path, Net(), resume=True, load_from=str(tmp_path / 'iter_6.pth')).train()

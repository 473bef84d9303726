"""Distillation of networks that behave differently in train mode, from stock configs."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmws import WSError, stock_config
from mmws.cli import transplant_checkpoint
from mmws.cli.distill import Distillation, check_batch_size, distill
from mmws.cli.load_model import build_model
from mmws.cli.transplant_data import Forward
from mmws.experiments.demo_samples import demo_samples

R18 = {'model.backbone.depth': 18, 'model.neck.in_channels': [64, 128, 256, 512]}
NETWORKS = {
    'no difference': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', R18),
    'scaled boxes': ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py', R18),
    'fewer outputs': ('mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py', R18),
    'smaller outputs': ('mmdet::solo/decoupled-solo-light_r50_fpn_3x_coco.py', R18),
    'other heads': ('mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', {}),
    'dropout': ('mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py', {}),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_copy_of_the_network_has_no_loss(name):
    """The student runs in the mode in which the teacher runs and a test will run."""
    path, options = NETWORKS[name]
    config = Config.fromfile(stock_config(path))
    config.merge_from_dict({**options, 'model.type': f'mmws.{config.model.type}', 'model.ws': {'pretrained': None}})
    size = (64, 64)
    data = {'inputs': torch.randn(2, 3, *size),
            'data_samples': [sample for _ in range(2) for sample in demo_samples(config.default_scope, size, 2)]}
    with DefaultScope.overwrite_default_scope(config.default_scope):
        teacher = build_model(config).eval()
        student = copy.deepcopy(teacher)
        distillation = Distillation(teacher, student, Forward(teacher, '', data), teacher.data_preprocessor).train()
        losses = distillation(data['inputs'], data['data_samples'], mode='loss')
        with torch.no_grad():
            next(student.backbone.parameters()).add_(0.1)
        distillation(data['inputs'], data['data_samples'], mode='loss')['loss_0'].backward()
    assert sum(losses.values()) == 0
    assert distillation.training
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())


class Outputs(nn.Module):
    """A network that gives tensors of these shapes."""

    def __init__(self, *shapes):
        super().__init__()
        self.shapes = shapes

    def forward(self, x):
        return [torch.zeros(shape) for shape in self.shapes]


class OutputsOf:
    """A pass of a network over a batch, as :class:`Forward`."""

    def start(self):
        """Do nothing: there are no regions."""

    def __call__(self, network, data):
        return network(data['inputs'])


@pytest.mark.parametrize(('teacher', 'student', 'message'), [
    ([(2, 3)], [(2, 3), (2, 3)], '1 outputs of the converted network, as the BatchNorm network gives, got 2'),
    ([(1, 3), (2, 3)], [(1, 3), (2, 1)], r'shape \(2, 3\) for output 1 of the .* gives, got \(2, 1\)'),
    ([], [], 'the BatchNorm network gives no outputs to compare'),
], ids=['number', 'shape', 'none'])
def test_outputs_that_do_not_correspond_are_refused(teacher, student, message):
    distillation = Distillation(Outputs(*teacher), Outputs(*student), OutputsOf(), nn.Identity())
    with pytest.raises(WSError, match=f'--distill: .*{message}; leave out --distill'):
        distillation(torch.zeros(1), mode='loss')


class Image(torch.utils.data.Dataset):
    """Six images, as a pipeline gives them."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {'inputs': torch.full((3, 4, 4), index / 6)}


class Stack(nn.Module):
    """A data preprocessor."""

    def forward(self, data, training):
        return {'inputs': torch.stack(data['inputs'])}


def distilled(folder, stop_at=0):
    """Return the weights after ten steps with a checkpoint after every second; Ctrl+C at step ``stop_at``."""
    torch.manual_seed(0)
    teacher, student, steps = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), iter(range(1, 20))
    if stop_at:
        student.register_forward_pre_hook(lambda *_: interrupt() if next(steps) == stop_at else None)
    config = Config({'train_dataloader': {'batch_size': 2}, 'default_scope': 'mmengine'})
    distill(config, Distillation(teacher, student, OutputsOf(), Stack()), Image(), 10, folder)
    return student.state_dict()


def interrupt():
    raise KeyboardInterrupt


def cut_save(number):
    """Return a function that writes the half of a checkpoint and stops, at the call ``number``."""
    calls, save = iter(range(1, 20)), Runner.save_checkpoint

    def save_checkpoint(self, folder, filename, *args, **kwargs):
        save(self, folder, filename, *args, **kwargs)
        if next(calls) == number:
            content = (Path(folder) / filename).read_bytes()
            (Path(folder) / filename).write_bytes(content[:len(content) // 2])
            interrupt()

    return save_checkpoint


@pytest.mark.parametrize(('stop_at', 'cut_at', 'deleted', 'resumed_at'), [
    (7, 0, '', 6), (0, 3, '', 4), (0, 1, '', 0), (7, 0, 'iter_6.pth', 4)],
    ids=['Ctrl+C', 'truncated', 'the only one truncated', 'deleted'])
def test_an_interrupted_distillation_resumes(stop_at, cut_at, deleted, resumed_at, tmp_path, monkeypatch, capsys):
    expected = distilled(tmp_path / 'whole')
    with monkeypatch.context() as patched:
        patched.setattr(Runner, 'save_checkpoint', cut_save(cut_at))
        with pytest.raises(KeyboardInterrupt):
            distilled(tmp_path / 'cut', stop_at)
    if deleted:
        (tmp_path / 'cut' / deleted).unlink()
    capsys.readouterr()
    found = distilled(tmp_path / 'cut')
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert (f'iter: {resumed_at}\n' in capsys.readouterr().out) == bool(resumed_at)


def test_a_result_that_is_not_finite_is_refused_before_it_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(transplant_checkpoint, 'distill', lambda _, model, *__: model.student.bias.data.fill_(math.nan))
    model = Distillation(nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), OutputsOf(), Stack())
    files = SimpleNamespace(paths=['a.png'])
    with pytest.raises(WSError, match='bias of the distilled network has NaN or infinite values; nothing is written'):
        transplant_checkpoint._distill_(Config({}), model, files, 1, tmp_path / 'out.pth')


@pytest.mark.parametrize('loader', [{}, {'batch_size': 0}, {'batch_size': None}], ids=str)
def test_a_config_without_a_batch_size_is_refused(loader):
    with pytest.raises(WSError, match=r'train_dataloader\.batch_size: expected .*, got (None|0); set it'):
        check_batch_size(Config({'train_dataloader': loader}))

"""Distillation of networks that behave differently in train mode, from stock configs."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmws import WSError, stock_config
from mmws.cli.distill import Distillation
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

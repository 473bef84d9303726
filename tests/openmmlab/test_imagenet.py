"""ImageNet training with mmpretrain: a small real run, its backbone in a detector, and gradient accumulation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F  # noqa: N812

from mmws import convert_
from mmws.checkpoint import read_checkpoint
from mmws.openmmlab.safe_globals import allow_log_history
from mmws.openmmlab.stock_configs import stock_config
from tests.helpers.commands import REPOSITORY, tool
from tests.helpers.versions import needs_weight_norm

CONFIG = REPOSITORY / 'configs' / 'resnet50_gnws_in1k.py'


@pytest.fixture
def digit_images(tmp_path) -> Path:
    """Return a folder of digits, with one folder per class."""
    digits = load_digits()
    for i in range(16):
        path = tmp_path / 'digits' / str(digits.target[i]) / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(digits.images[i].astype(np.uint8) * 15, (32, 32)))
    return tmp_path / 'digits'


def test_a_backbone_trained_with_mmpretrain_loads_into_a_detector(digit_images, tmp_path, mmdet_scope):
    pipeline = "[dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]"
    dataset = f"dict(_delete_=True, type='CustomDataset', data_root='{digit_images}', pipeline={pipeline})"
    (tmp_path / 'tiny.py').write_text(
        f"_base_ = '{CONFIG}'\n"
        f'train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset={dataset})\n'
        'val_dataloader = train_dataloader\ntest_dataloader = train_dataloader\n'
        'model = dict(head=dict(num_classes=10))\ndata_preprocessor = dict(num_classes=10)\n'
        'optim_wrapper = dict(accumulative_counts=2)\ntrain_cfg = dict(max_epochs=1)\n'
        "default_hooks = dict(logger=dict(interval=1))\nwork_dir = 'work_dir'\n")
    result = tool('train.py', 'tiny.py', folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'accuracy/top1' in result.stdout + result.stderr

    checkpoint = tmp_path / 'work_dir' / 'epoch_1.pth'
    config = Config.fromfile(REPOSITORY / 'configs' / 'mask_rcnn_r50_gnws.py').model
    config.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': str(checkpoint), 'prefix': 'backbone.'}
    detector = MODELS.build(config)
    detector.backbone.init_weights()
    allow_log_history()
    saved = read_checkpoint(checkpoint).tensors
    loaded = detector.backbone.state_dict()
    assert len(loaded) == 53 * 3
    assert all(torch.equal(value, saved[f'backbone.{key}']) for key, value in loaded.items())


def update(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, micro_batches: int) -> torch.Tensor:
    """Return the weights after one update from several micro-batches, with mmengine's gradient accumulation."""
    net = copy.deepcopy(net).train()
    wrapper = OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.1), accumulative_counts=micro_batches)
    wrapper.initialize_count_status(net, 0, micro_batches)
    for part, wanted in zip(images.chunk(micro_batches), labels.chunk(micro_batches)):
        with wrapper.optim_context(net):
            loss = F.cross_entropy(net(part), wanted)
        wrapper.update_params(loss)
    return nn.utils.parameters_to_vector(net.parameters())


@pytest.mark.parametrize(('norm', 'equal'), [('GN', True), ('keep', False)])
def test_four_micro_batches_of_one_image_equal_one_batch_of_four(norm, equal):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double()
    convert_(net, norm=norm, num_groups=4)
    images, labels = torch.randn(4, 3, 9, 9, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    micro, large = update(net, images, labels, 4), update(net, images, labels, 1)
    assert not torch.equal(micro, nn.utils.parameters_to_vector(net.parameters()))
    assert torch.allclose(micro, large, rtol=1e-6, atol=1e-6) == equal


def moco(**config: Any) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return a small MoCo v2 and a batch."""
    stock = Config.fromfile(stock_config('mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py')).model
    stock.backbone.depth, stock.neck.in_channels, stock.queue_len = 18, 512, 8
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**stock, **config}), [torch.randn(2, 3, 64, 64) for _ in range(2)]


@pytest.mark.parametrize('options', [{}, {'norm': 'EstBN'}, pytest.param({'weight': 'wn'}, marks=needs_weight_norm)])
def test_the_momentum_encoder_of_moco_averages_each_parameter(options):
    """mmengine's averaged models keep their parameters by name, and the conversion changes names."""
    model, views = moco(type='mmws.MoCo', ws=options, momentum=0.25)
    model(views, [None] * 2, mode='loss')
    before = copy.deepcopy(dict(model.encoder_k.module.named_parameters()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model(views, [None] * 2, mode='loss')['loss'].backward()
    source = dict(nn.Sequential(model.backbone, model.neck).named_parameters())
    averages = dict(model.encoder_k.module.named_parameters())
    assert averages.keys() == source.keys()
    for name, average in averages.items():
        assert torch.allclose(average, before[name] * 0.75 + source[name] * 0.25, atol=1e-6), name
        assert source[name].grad is not None, name


def test_a_run_of_moco_shows_what_follows_each_convolution():
    """The update of its momentum encoder reads every weight; that is not a use of the weight."""
    model, views = moco()
    with pytest.warns(UserWarning, match='evaluation mode'):  # MoCo has none
        report = convert_(model, inputs={'inputs': views, 'data_samples': [None] * 2})
    assert len(report.converted) == 40
    assert not report.skipped

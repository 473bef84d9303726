"""All configs parse, build and train a step; the model index agrees with them."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from modelindex.load_model_index import load
from torch import nn

from mmws import WSError, convert_
from mmws.layers.conv import WeightStandardized
from mmws.ops.torch_compat import BatchNorm
from tests.helpers.commands import REPOSITORY

CONFIGS = sorted(path for path in (REPOSITORY / 'configs').rglob('*.py') if '_base_' not in path.parts)


TOOLKIT_KEYS = {  # of the toolkits' own configs, beside the arguments of the runner
    'backend_args', 'crop_size', 'data_root', 'dataset_aug', 'dataset_train', 'dataset_type', 'data_preprocessor',
    'img_ratios', 'img_scale', 'max_iters', 'meta_keys', 'metainfo', 'norm_cfg', 'optimizer', 'test_pipeline',
    'train_pipeline', 'tta_model', 'tta_pipeline', 'vis_backends'}
UPDATES = {'resnet50_gnws_in1k': 256, 'resnet101_gnws_in1k': 128, 'resnext50_32x4d_gnws_in1k': 128,
           'resnext101_32x4d_gnws_in1k': 128}


def sample(config: Config) -> dict:
    """Return one small image with annotations, in the form of the config's data loader."""
    if config.default_scope == 'mmdet':
        data = demo_mm_inputs(1, [(3, 96, 128)], num_items=[3], num_classes=2, with_mask=True)
        data['data_samples'][0].gt_instances.labels.zero_()  # nuclei are one class
        return data
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    if config.default_scope == 'mmpretrain':
        return {'inputs': image[None], 'data_samples': [DataSample().set_gt_label(3)]}
    labels = PixelData(data=torch.randint(config.model.decode_head.num_classes, (1, 64, 96)))
    metainfo = {'img_shape': (64, 96), 'ori_shape': (64, 96)}
    return {'inputs': [image], 'data_samples': [SegDataSample(gt_sem_seg=labels, metainfo=metainfo)]}


@pytest.mark.parametrize('path', [path for path in CONFIGS if path.stem in (
    'mask_rcnn_r18_gnws_digits', 'deeplabv3_r18_gnws_digits', 'resnet50_gnws_in1k')], ids=lambda path: path.stem)
def test_a_batch_of_the_data_loader_runs_as_in_training_and_test(path, in_scope):
    config = Config.fromfile(path)
    with in_scope(config.default_scope):
        model = MODELS.build({**config.model, 'type': config.model.type[len('mmws.'):]})
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            report = convert_(model, inputs=sample(config))
        assert (len(report.converted) > 18, report.unseen) == (True, [])
        with pytest.raises(WSError, match='the network does not run on the inputs'):
            convert_(model, inputs={'inputs': [], 'data_samples': []})


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_dumped_config_builds_and_trains_a_step_without_batch_norm(path, in_scope):
    config = Config.fromfile(path)
    if 'size' in config.model.get('data_preprocessor', {}):
        config.model.data_preprocessor.size = (64, 96)
    with in_scope(config.default_scope):
        assert path.parent.name == 'study' or config.default_hooks.guard.type == 'mmws.GuardHook'
        model = MODELS.build(Config.fromstring(config.pretty_text, '.py').model).train()
        data = model.data_preprocessor(sample(config), training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert not any(isinstance(module, BatchNorm) for module in model.modules())
    assert any(isinstance(module, WeightStandardized) for module in model.modules())
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_states_its_batch_and_has_no_generic_key(path):
    config = Config.fromfile(path)
    assert config.auto_scale_lr.get('enable', False) is False
    images, on_one_gpu = config.auto_scale_lr.base_batch_size, config.train_dataloader.batch_size
    assert images % on_one_gpu == 0
    per_update = UPDATES.get(path.stem, images)
    assert images * config.optim_wrapper.get('accumulative_counts', 1) == per_update
    text = ' '.join(path.read_text().split())
    assert path.parent.name == 'study' or re.search(rf'\b{per_update} images? per (step|update)', text)
    assert 'batch_size' in own_source(path)
    assert config.keys() - inspect.signature(Runner.__init__).parameters.keys() <= TOOLKIT_KEYS


def own_source(path: Path) -> str:
    """Return the source of a config and of the configs of this repository that it inherits."""
    bases = re.findall(r"'(\.[^']*\.py)'", path.read_text())
    return path.read_text().partition('_base_')[2] + ''.join(own_source(path.parent / base) for base in bases)


def test_the_authors_segmentation_recipe_has_50_epochs_of_16_images():
    config = Config.fromfile(REPOSITORY / 'configs' / 'deeplabv3_r101_gnws_voc12aug_jhu.py')
    assert config.train_cfg.max_iters == 33068 == config.param_scheduler[0].end
    assert config.default_hooks.checkpoint.interval == config.train_cfg.val_interval == 3306


def test_model_index_lists_all_configs_except_the_study():
    index = load(str(REPOSITORY / 'model-index.yml'))
    index.build_models_with_collections()
    listed = [path for path in CONFIGS if path.parent.name != 'study']
    assert sorted(REPOSITORY / model.config for model in index.models) == listed
    for model in index.models:
        assert bool(model.results) == ('Results By' in model.metadata.data), model.name


def test_model_index_has_the_numbers_of_the_config_files():
    index = load(str(REPOSITORY / 'model-index.yml'))
    for model in index.models:
        for result in model.results or [] if 'demo' not in model.config else []:
            (value, *_) = result.metrics.values()
            assert f'{value:.2f}' in (REPOSITORY / model.config).read_text(), model.name


def test_mask_rcnn_r50_has_the_authors_layout_and_schedule(mmdet_scope):
    config = Config.fromfile(REPOSITORY / 'configs' / 'mask_rcnn_r50_gnws.py')
    model = MODELS.build(config.model)
    standardized = [name for name, module in model.named_modules() if isinstance(module, WeightStandardized)]
    counts = {part: sum(name.startswith(part) for name in standardized) for part in (
        'backbone.', 'neck.lateral_convs.', 'neck.fpn_convs.', 'roi_head.bbox_head.shared_convs.',
        'roi_head.mask_head.convs.')}
    assert list(counts.values()) == [53, 4, 4, 4, 4]
    assert sum(counts.values()) == len(standardized)  # the RPN, the deconvolution and the predictors stay plain
    assert not any(isinstance(module, nn.GroupNorm) for module in model.rpn_head.modules())
    assert {(norm.num_groups, norm.eps) for norm in model.modules() if isinstance(norm, nn.GroupNorm)} == {(32, 1e-5)}
    assert not any(parameter.requires_grad for parameter in model.backbone.layer1.parameters())
    assert all(parameter.requires_grad for parameter in model.backbone.layer2.parameters())

    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    assert {(group['lr'], group['weight_decay']) for group in optimizer.param_groups
            if group['params'][0] is model.neck.fpn_convs[0].gn.bias} == {(0.02, 0)}
    assert {(group['lr'], group['weight_decay']) for group in optimizer.param_groups
            if group['params'][0] is model.neck.fpn_convs[0].gn.weight} == {(0.01, 1e-4)}

"""Every config parses, builds with the convolutions its file promises, and says where its numbers come from."""

import pytest
import torch
from conftest import REPOSITORY
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

from mmws.conv import WeightStandardized

CONFIGS = sorted(path for path in (REPOSITORY / 'configs').rglob('*.py') if '_base_' not in path.parts)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds_without_batch_norm_and_survives_a_dump(path, in_scope):
    config = Config.fromfile(path)
    with in_scope(config.default_scope):
        model = MODELS.build(Config.fromstring(config.pretty_text, '.py').model)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert any(isinstance(module, WeightStandardized) for module in model.modules())


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

    optimizer = _optimizer(config, model)
    assert {(group['lr'], group['weight_decay']) for group in optimizer.param_groups
            if group['params'][0] is model.neck.fpn_convs[0].gn.bias} == {(0.02, 0)}
    assert {(group['lr'], group['weight_decay']) for group in optimizer.param_groups
            if group['params'][0] is model.neck.fpn_convs[0].gn.weight} == {(0.01, 1e-4)}


def _optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:

    return build_optim_wrapper(model, config.optim_wrapper).optimizer



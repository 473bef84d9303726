"""The prefix on the toolkits' types, compared with the toolkits' own GN + ConvWS configs."""

from __future__ import annotations

from pathlib import Path

import mmcv
import mmdet
import pytest
import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d as MmcvConvWS2d
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from mmws import ConvTransposeWS2d, ConvWS1d, ConvWS2d, ConvWS3d, WSError, convert_
from mmws.ops.torch_compat import BatchNorm
from tests.helpers.models import BN, GN, WS, with_norm
from tests.helpers.pairs import pairs

STOCK = Path(mmdet.__file__).parent / '.mim' / 'configs'


def names_of(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is kind]


def backbone(kind='ResNet', **arguments):
    return {'type': kind, 'depth': 50, 'norm_cfg': BN, **arguments}


PARTS = [
    ('mmdet', backbone()),
    ('mmdet', backbone(style='caffe', frozen_stages=2, deep_stem=True, avg_down=True)),
    ('mmdet', backbone('ResNeXt', groups=32, base_width=4)),
    ('mmdet', backbone(depth=18, zero_init_residual=False)),
    ('mmdet', {'type': 'FPN', 'in_channels': [64, 128], 'out_channels': 64, 'num_outs': 3, 'norm_cfg': BN}),
    ('mmdet', {'type': 'Shared4Conv1FCBBoxHead', 'in_channels': 64, 'conv_out_channels': 64, 'norm_cfg': BN}),
    ('mmdet', {'type': 'FCNMaskHead', 'in_channels': 64, 'conv_out_channels': 64, 'norm_cfg': BN}),
    ('mmseg', backbone('ResNetV1c', dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), multi_grid=(1, 2, 4))),
    ('mmseg', {'type': 'ASPPHead', 'in_channels': 64, 'channels': 64, 'num_classes': 5, 'norm_cfg': BN}),
    ('mmseg', {'type': 'FCNHead', 'in_channels': 64, 'channels': 64, 'num_classes': 5, 'norm_cfg': BN}),
]


@pytest.mark.parametrize(('scope', 'config'), PARTS, ids=lambda part: part if isinstance(part, str) else part['type'])
def test_parts_equal_those_with_conv_cfg_and_norm_cfg(scope, config, in_scope):
    with in_scope(scope):
        converted = MODELS.build({**config, 'type': f'mmws.{config["type"]}'})
        expected = MODELS.build(with_norm(config, WS, GN))
    assert type(converted) is type(expected)
    assert converted.load_state_dict(expected.state_dict(), strict=True)
    assert list(converted.state_dict()) == list(expected.state_dict())
    assert names_of(converted, ConvWS2d) == names_of(expected, MmcvConvWS2d) != []
    assert names_of(converted, nn.GroupNorm) == names_of(expected, nn.GroupNorm)
    assert [p.requires_grad for p in converted.parameters()] == [p.requires_grad for p in expected.parameters()]


def test_backbone_outputs_and_initialization_equal_the_toolkits(mmdet_scope):
    converted, expected = MODELS.build(backbone('mmws.ResNet')), MODELS.build(with_norm(backbone(), WS, GN))
    converted.init_weights()
    assert not converted.layer1[0].gn3.weight.any()  # zero_init_residual uses norm3
    assert converted.conv1.weight.std() > 0.01
    expected.load_state_dict(converted.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for a, b in pairs(converted(x), expected(x)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max()))


def test_detector_equals_the_toolkits_gn_ws_config(mmdet_scope):
    config = Config.fromfile(STOCK / 'gn+ws' / 'mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py').model
    plain = ConfigDict({**with_norm(config.to_dict(), None, BN), 'type': 'mmws.MaskRCNN'})
    converted, expected = MODELS.build(plain), MODELS.build(config)
    assert list(converted.state_dict()) == list(expected.state_dict())
    assert names_of(converted, ConvWS2d) == names_of(expected, MmcvConvWS2d)


def test_one_changed_key_converts_a_stock_config(mmdet_scope, log):
    config = Config.fromfile(STOCK / 'mask_rcnn' / 'mask-rcnn_r50_fpn_1x_coco.py')
    config.merge_from_dict({'model.type': 'mmws.MaskRCNN'})
    model = MODELS.build(Config.fromstring(config.pretty_text, '.py').model)  # dumped and loaded again
    assert type(model).__name__ == 'MaskRCNN'
    assert not any(isinstance(module, BatchNorm) for module in model.modules())
    assert all(name.startswith('backbone.') for name in names_of(model, ConvWS2d))  # the other parts have no norm
    assert any('53 convolutions standardized, 17 modules unchanged, 53 BatchNorm replaced' in line for line in log)


def test_explicit_scope(in_scope):
    assert type(MODELS.build(backbone('mmws.mmdet.ResNet', depth=18))).__module__.startswith('mmdet.')
    with in_scope('mmdet'):
        assert type(MODELS.build(backbone('mmws.mmseg.ResNetV1c', depth=18))).__module__.startswith('mmseg.')


@pytest.mark.parametrize(('name', 'kind'), [
    ('ConvWS', ConvWS2d), ('ConvWS1d', ConvWS1d), ('ConvWS3d', ConvWS3d), ('Conv2d', ConvWS2d), ('Conv', ConvWS2d),
    ('ConvTransposeWS2d', ConvTransposeWS2d)])
def test_conv_cfg_with_a_layer_of_mmws(mmdet_scope, name, kind):
    block = mmcv.cnn.ConvModule(3, 4, 1, conv_cfg={'type': f'mmws.{name}', 'eps': 1e-3}, norm_cfg=BN)
    assert type(block.conv) is kind
    assert block.conv.eps == 1e-3


def test_mmws_registers_nothing_at_the_root():
    MODELS.get('mmws.ConvWS')
    assert MODELS.get('ConvWS') is MmcvConvWS2d
    assert not any(module.__module__.startswith('mmws') for module in MODELS.module_dict.values())


def test_ws_has_the_options(mmdet_scope):
    model = MODELS.build(backbone('mmws.ResNet', depth=18, ws={'num_groups': 8, 'eps': 1e-3, 'exclude': ['conv1']}))
    assert type(model.conv1) is nn.Conv2d
    assert model.gn1.num_groups == 8
    assert model.layer1[0].conv1.eps == 1e-3


def test_a_prefix_inside_a_prefix_changes_nothing(mmdet_scope):
    config = Config.fromfile(STOCK / 'mask_rcnn' / 'mask-rcnn_r50_fpn_1x_coco.py').model
    config.type = 'mmws.MaskRCNN'
    once = MODELS.build(config)
    config.backbone.type = 'mmws.mmdet.ResNet'
    config.neck.conv_cfg = {'type': 'mmws.Conv2d'}
    assert list(MODELS.build(config).state_dict()) == list(once.state_dict())
    config.backbone.ws = {'norm': 'keep'}
    with pytest.raises(ValueError, match=r'mmws\.MaskRCNN\.backbone\.ws differs from the ws options'):
        MODELS.build(config)


@pytest.mark.parametrize(('config', 'message'), [
    ({'type': 'mmws.MaskRCN'}, r"unknown type 'mmws\.MaskRCN': mmdet has no 'MaskRCN'; did you mean 'MaskRCNN'"),
    ({'type': 'mmws.mmdet.Resnet'}, "mmdet has no 'Resnet'; did you mean 'ResNet'"),
    ({'type': 'mmws.mmdett.ResNet'}, "unknown scope 'mmdett'; did you mean 'mmdet'"),
    ({'type': 'mmws.ResNet', 'depth': 50, 'ws': {'group': 3}}, "unknown ws option 'group': did you mean 'num_groups'"),
    ({'type': 'mmws.ResNet', 'depth': 50, 'ws': 'GN'}, r"ws in the config of mmws\.ResNet: expected a dict, got 'GN'"),
    ({'type': 'mmws.get_nothing'}, "mmdet has no 'get_nothing'"),
])
def test_messages_about_wrong_configs(config, message, mmdet_scope):
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)


def test_the_prefix_is_for_modules_only(mmdet_scope):
    MODELS.register_module('not_a_network', module=dict, force=True)
    with pytest.raises(WSError, match='not_a_network is a dict'):
        MODELS.build({'type': 'mmws.not_a_network'})


def test_messages_without_a_default_scope(in_scope):
    with pytest.raises(WSError, match=r"no default scope; .* 'mmws\.mmdet\.ResNet'"):
        MODELS.build({'type': 'mmws.ResNet', 'depth': 50})
    with in_scope('mmws'), pytest.raises(WSError, match="default_scope='mmws' is not a toolkit"):
        MODELS.build({'type': 'mmws.ResNet', 'depth': 50})


def test_distillation_converts_the_student_and_reports_the_teacher(mmdet_scope):
    config = Config.fromfile(STOCK / 'lad' / 'lad_r50-paa-r101_fpn_2xb8_coco_1x.py').model
    model = MODELS.build({**config, 'type': 'mmws.LAD', 'teacher_ckpt': None})
    assert type(model.backbone.conv1) is ConvWS2d
    assert type(model.teacher_model.backbone.conv1) is nn.Conv2d
    assert type(model.teacher_model.backbone.bn1) is nn.BatchNorm2d
    assert convert_(model).skipped['teacher_model'] == 'not a registered submodule'

from __future__ import annotations

import copy
import re

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from mmws import WSError
from mmws.openmmlab.weight_hub import GN_WS_WEIGHTS
from tests.helpers.versions import needs_weight_norm

BN_WEIGHTS = {'resnet50': 'torchvision://resnet50', 'resnet101': 'torchvision://resnet101',
              'resnext50_32x4d': 'open-mmlab://resnext50_32x4d', 'resnext101_32x4d': 'open-mmlab://resnext101_32x4d'}
PREPROCESSOR = {'type': 'DetDataPreprocessor', 'bgr_to_rgb': True}


def pretrained(checkpoint):
    return checkpoint and {'type': 'Pretrained', 'checkpoint': checkpoint}


def resnet(checkpoint, depth=50, kind='mmws.ResNet', **arguments):
    return MODELS.build({'type': kind, 'depth': depth, 'init_cfg': pretrained(checkpoint), **arguments})


def detector(checkpoint, preprocessor=PREPROCESSOR, ws=None, **arguments):
    backbone = {'type': 'ResNet', 'depth': 50, 'init_cfg': pretrained(checkpoint), **arguments}
    head = {'type': 'FCOSHead', 'num_classes': 2, 'in_channels': 8}
    return MODELS.build({'type': 'mmws.SingleStageDetector', 'backbone': backbone, 'ws': ws, 'bbox_head': head,
                         'data_preprocessor': preprocessor})


def warnings(log: list[str]) -> list[str]:
    return [line for line in log if line.startswith('WARNING')]


@pytest.mark.parametrize('architecture', GN_WS_WEIGHTS)
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_gn_ws_weights_replace_batch_norm_weights_of_a_published_architecture(architecture, scope, in_scope, log):
    arguments = {'groups': 32, 'base_width': 4} if 'resnext' in architecture else {}
    with in_scope(scope):
        model = resnet(BN_WEIGHTS[architecture], int(re.search(r'\d+', architecture)[0]),
                       'mmws.ResNeXt' if 'resnext' in architecture else 'mmws.ResNet', **arguments)
    assert model.init_cfg['checkpoint'] == GN_WS_WEIGHTS[architecture]
    (line,) = warnings(log)
    assert f'{GN_WS_WEIGHTS[architecture]} instead of {BN_WEIGHTS[architecture]}, which do not fit' in line
    assert 'set ws=dict(pretrained=...)' in line


@pytest.mark.parametrize(('checkpoint', 'arguments', 'summary'), [
    ('open-mmlab://detectron2/resnet50_caffe', {'style': 'caffe'},
     '49 of 53 GroupNorms have other names (gn instead of bn) and do not'),
    ('torchvision://resnet18', {'depth': 18}, '17 of 20 GroupNorms have other names (gn instead of bn) and do not'),
    ('torchvision://resnet50', {'style': 'caffe'}, 'The 53 standardized convolutions load'),
    ('torchvision://resnet50', {'ws': {'norm': 'keep'}}, '0 of 0 GroupNorms'),
    ('torchvision://resnet50', {'ws': {'norm': 'SN'}}, '49 of 53 SwitchableNorms have other names (sn instead of bn)'),
    pytest.param('torchvision://resnet50', {'ws': {'weight': 'wn'}},
                 '53 weight-normalized convolutions load by name, although', marks=needs_weight_norm),
    ('torchvision://resnet50', {'ws': {'weight': 'plain'}}, 'The 53 plain convolutions load by name; 49 of 53 GroupN'),
])
def test_other_weights_stay_with_a_warning_about_the_parts_that_load(checkpoint, arguments, summary, mmdet_scope, log):
    model = resnet(checkpoint, **arguments)
    assert model.init_cfg['checkpoint'] == checkpoint
    (line,) = warnings(log)
    norm = 'SwitchableNorm' if 'sn instead of bn' in summary else 'GroupNorm'
    weights = {'wn': ' and Weight normalization', 'plain': ''}.get(
        arguments.get('ws', {}).get('weight'), ' and Weight Standardization')
    assert f'the weights {checkpoint} were not trained with {norm}{weights}. ' in line
    assert summary in line


@pytest.mark.parametrize('checkpoint', [None, 'open-mmlab://jhu/resnet50_gn_ws', 'file.pth'])
def test_no_warning_on_weights_that_fit_or_are_unknown_before_loading(checkpoint, mmdet_scope, log):
    model = resnet(checkpoint)
    assert checkpoint is None or model.init_cfg['checkpoint'] == checkpoint
    assert warnings(log) == []


@pytest.mark.parametrize('ws', [{'norm': 'LN'}, {'norm': 'BCN'}, {'weight': 'plain'},
                                pytest.param({'weight': 'wn'}, marks=needs_weight_norm)])
def test_published_weights_for_another_norm_or_weight_form_are_an_error(ws, mmdet_scope):
    with pytest.raises(WSError, match='were trained with GroupNorm and Weight Standardization, not with ws=dict'):
        resnet('open-mmlab://jhu/resnet50_gn_ws', ws=ws)


def test_no_warning_if_the_options_change_nothing(mmdet_scope, log):
    resnet('torchvision://resnet50', ws={'norm': 'keep', 'weight': 'plain'})
    assert warnings(log) == []


def test_no_warning_if_nothing_was_converted(mmdet_scope, log):
    with pytest.warns(UserWarning, match='nothing was standardized'):
        MODELS.build({'type': 'mmws.SwinTransformer', 'init_cfg': pretrained('https://x/y')})
    assert warnings(log) == []


@pytest.mark.parametrize('checkpoint', [
    'torchvision://resnet50', 'open-mmlab://jhu/resnet50_gn_ws'])
def test_rgb_weights_and_a_bgr_preprocessor_are_an_error(checkpoint, mmdet_scope):
    message = r'backbone\.init_cfg: .*jhu.*resnet50_gn_ws were trained on RGB .* bgr_to_rgb=True'
    for preprocessor in ({'type': 'DetDataPreprocessor'}, {'type': 'mmseg.SegDataPreProcessor', 'bgr_to_rgb': False}):
        with pytest.raises(WSError, match=message):
            detector(checkpoint, preprocessor)
    detector(checkpoint)


@pytest.mark.parametrize(('arguments', 'architecture'), [
    ({'depth': 101}, 'but this is resnet101'),
    ({'style': 'caffe'}, r"but this is ResNet\(depth=50, style='caffe', deep_stem=False\)"),
    ({'deep_stem': True}, 'deep_stem=True'),
])
def test_published_weights_for_another_architecture_are_an_error(arguments, architecture, mmdet_scope):
    with pytest.raises(WSError, match=f'jhu/resnet50_gn_ws are for that architecture in its v1 form.*{architecture}'):
        resnet('open-mmlab://jhu/resnet50_gn_ws', **arguments)


@pytest.mark.parametrize('requested', ['torchvision://resnet18', None])
def test_the_option_overrides_the_weights_in_the_config(requested, mmdet_scope, tmp_path, log):
    torch.save({}, tmp_path / 'own.pth')
    assert detector(requested, ws={'pretrained': None}).backbone.init_cfg != pretrained(requested)  # ResNet's default
    for checkpoint in (str(tmp_path / 'own.pth'), 'https://example.org/own.pth', 'open-mmlab://jhu/resnet50_gn_ws'):
        model = detector(requested, ws={'pretrained': checkpoint})
        assert model.backbone.init_cfg == pretrained(checkpoint)
    assert resnet(requested, ws={'pretrained': checkpoint}).init_cfg == pretrained(checkpoint)


@pytest.mark.parametrize(('requested', 'frozen_stages', 'warned'), [
    (None, 1, True), (None, -1, False), ('own.pth', 1, False)])
def test_frozen_stages_without_weights_are_named(requested, frozen_stages, warned, mmdet_scope, log, tmp_path):
    if requested:
        requested = str(tmp_path / requested)
        torch.save({'state_dict': resnet(None, 18).state_dict()}, requested)
    model = detector('torchvision://resnet18', ws={'pretrained': requested}, depth=18, frozen_stages=frozen_stages)
    log.clear()
    copy.deepcopy(model).init_weights()
    assert any('backbone: frozen_stages=1 keeps random weights' in line for line in warnings(log)) == warned


def test_the_option_overrides_mmsegs_pretrained_key(in_scope):
    with in_scope('mmseg'):
        head = {'type': 'FCNHead', 'in_channels': 2048, 'channels': 8, 'num_classes': 3}
        config = {'type': 'mmws.EncoderDecoder', 'pretrained': 'open-mmlab://resnet50_v1c', 'decode_head': head,
                  'backbone': {'type': 'ResNetV1c', 'depth': 50}, 'ws': {'pretrained': 'https://example.org/own.pth'}}
        model = MODELS.build(ConfigDict(config))
    assert model.backbone.init_cfg['checkpoint'] == 'https://example.org/own.pth'


@pytest.mark.parametrize(('value', 'message'), [
    (3, 'ws option pretrained: expected a path, a URL or None, got 3'),
    ('nowhere.pth', r'ws option pretrained: file nowhere\.pth not found'),
    ('open-mmlab://jhu/resnet34_gn_ws', r"unknown weights .*resnet34_gn_ws: did you mean '.*jhu/resnet50_gn_ws'"),
    ('jhu://resnet50_gn_ws', r"unknown weights jhu://resnet50_gn_ws: did you mean 'open-mmlab://jhu/resnet50_gn_ws'"),
])
def test_wrong_values_of_the_option(value, message, mmdet_scope):
    with pytest.raises(WSError, match=message):
        resnet(None, ws={'pretrained': value})
    if 'jhu' in str(value):
        with pytest.raises(WSError, match=message):
            resnet(value)


def test_loading_a_file_with_batch_norm_weights_warns(mmdet_scope, log, tmp_path):
    torch.save(resnet(None, 18, 'ResNet').state_dict(), tmp_path / 'bn.pth')
    model = resnet(str(tmp_path / 'bn.pth'), 18)
    assert warnings(log) == []
    model.init_weights()
    assert any('has BatchNorm statistics (bn1.running_mean and 19 more)' in line for line in warnings(log))
    log.clear()
    load_checkpoint(resnet(None, 18), str(tmp_path / 'bn.pth'))
    assert any('has BatchNorm statistics' in line for line in warnings(log))
    log.clear()
    load_checkpoint(resnet(None, 18, ws={'norm': 'keep'}), str(tmp_path / 'bn.pth'))
    torch.save(resnet(None, 18).state_dict(), tmp_path / 'gn.pth')
    load_checkpoint(resnet(None, 18), str(tmp_path / 'gn.pth'))
    assert warnings(log) == []


@pytest.mark.parametrize(('whole', 'prefix', 'message'), [
    (False, 'backbone.', r'a whole model \(backbone\.conv1\.weight\), and none that ResNet has \(.*load_from=\.\.\.'),
    (True, '', r'a backbone alone \(conv1\.weight\), and none that SingleStageDetector has .*pretrained=\.\.\.'),
], ids=['a whole model', 'a backbone'])
def test_weights_of_another_part_are_refused(whole, prefix, message, mmdet_scope, tmp_path):
    """mmengine would load nothing, and the training would start from scratch."""
    model = detector(None, depth=18)
    weights = {f'{prefix}{key}': tensor for key, tensor in model.backbone.state_dict().items()}
    torch.save({'state_dict': weights}, tmp_path / 'out.pth')
    start = detector(None, depth=18, ws={'pretrained': str(tmp_path / 'out.pth')})
    load = (lambda: load_checkpoint(model, str(tmp_path / 'out.pth'))) if whole else start.init_weights
    with pytest.raises(WSError, match=message):
        load()
    load_checkpoint(model.backbone, str(tmp_path / 'out.pth'), revise_keys=[(r'^backbone\.', '')])

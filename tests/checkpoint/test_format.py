"""Meta data of converted checkpoints, and refused checkpoints."""

import json

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from safetensors import safe_open

from mmws import WSError
from mmws.checkpoint import convert_checkpoint, read_checkpoint
from mmws.checkpoint.authors_imagenet import resnet_shapes
from mmws.checkpoint.maskrcnn_benchmark import from_caffe2
from tests.helpers.checkpoints import ONLY_NAMES, shapes_of
from tests.helpers.commands import tool, tool_error


def test_the_toolkits_own_weights_stay_unchanged(tmp_path):
    weights = {key: torch.randn(shape) for key, shape in resnet_shapes(ONLY_NAMES)[1].items()}
    torch.save({'state_dict': weights, 'meta': {'CLASSES': ('a', 'b'), 'time': 'now'}}, tmp_path / 'b.pth')
    converted = convert_checkpoint(tmp_path / 'b.pth')
    assert all(torch.equal(value, weights[key]) for key, value in converted.state_dict.items())
    assert converted.meta['CLASSES'] == ('a', 'b')
    model = {**{f'backbone.{key}': value for key, value in weights.items()}, 'head.w': torch.ones(1)}
    torch.save(model, tmp_path / 'm.pth')
    assert convert_checkpoint(tmp_path / 'm.pth').state_dict.keys() == model.keys()
    del model['backbone.layer4.2.gn3.bias']
    torch.save(model, tmp_path / 'm.pth')
    with pytest.raises(WSError, match=r'resnet50 needs backbone\.layer4\.2\.gn3\.bias of shape \(2048,\), but it is'):
        convert_checkpoint(tmp_path / 'm.pth')


@pytest.mark.parametrize(('tensors', 'message'), [
    (lambda: shapes_of(**{'layer2.1.bn3.bias': None}),
     r'resnet50 needs layer2\.1\.gn3\.bias of shape \(512,\), but it is m'),
    (lambda: shapes_of(**{'conv1.weight': torch.ones(64, 4, 7, 7)}),
     r'conv1\.weight has shape \(64, 4, 7, 7\), but conv1\.weight of resnet50 has \(64, 3, 7, 7\)'),
    (lambda: shapes_of(**{'layer1.0.se.weight': torch.ones(2)}),
     r'layer1\.0\.se\.weight of shape \(2,\) does not belong to resnet50: did you mean'),
    (lambda: shapes_of(**{'gn1.bias': torch.ones(64)}),
     r'gn1\.bias and gn1\.bias both map|bn1\.bias and gn1\.bias both map'),
    (lambda: shapes_of(**{f'layer3.5.{rest}': None for rest in (
        *(f'{kind}{i}.weight' for kind in ('conv', 'bn') for i in (1, 2, 3)), *(f'bn{i}.bias' for i in (1, 2, 3)))}),
     r'expected the bottleneck blocks \(3, 4, 6, 3\) .* got \(3, 4, 5, 3\)'),
    (lambda: {'stem.conv.weight': torch.ones(1), 'stages.0.blocks.0.conv1.weight': torch.ones(1)},
     r"incompatible weights: timm's resnetv2_\* of BiT .* biased standard deviation, with eps inside the sq"),
    (lambda: {'root.conv.weight': torch.ones(1), 'body.block1.unit01.gn1.weight': torch.ones(1)},
     "incompatible weights: BiT's weights"),
    (lambda: {'stages.0.0.conv1.gain': torch.ones(1)}, r"timm's ScaledStdConv2d .*biased"),
    (lambda: {'backbone.conv1.weight_gamma': torch.ones(1)}, "mmcv's ConvAWS"),
    (lambda: shapes_of(**{'bn1.running_mean': torch.ones(64)}), r'running statistics, so .* \(bn1\.running_mean\)'),
    (lambda: {'features.0.weight': torch.ones(1)}, r'unknown format; expected .*got the tensors features\.0\.weight'),
])
def test_a_tensor_that_does_not_fit_is_named(tensors, message, tmp_path):
    torch.save(tensors(), tmp_path / 'x.pth')
    with pytest.raises(WSError, match=message):
        convert_checkpoint(tmp_path / 'x.pth')


@pytest.mark.parametrize('key', ['branch2a_w', 'res_res2_0_branch2a_w', 'res2_0_conv1_w', 'res6_0_branch1_w'])
def test_an_unknown_name_of_caffe2_stays_unchanged(key):
    assert from_caffe2(key) == key


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
def test_the_tool_reports_the_format_and_the_tensors_left_over(ending, in_scope, tmp_path):
    torch.save(shapes_of(**{'fc.bias': torch.ones(1000)}), tmp_path / 'R-50-GN-WS.pth.tar')
    result = tool('convert_checkpoint.py', 'R-50-GN-WS.pth.tar', f'out.{ending}', folder=tmp_path)
    assert result.returncode == 0, result.stderr
    for line in ("found the authors' ImageNet weights: resnet50, 159 tensors", "'channels': 'RGB'",
                 'left over fc.bias: the classifier'):
        assert line in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {'R-50-GN-WS.pth.tar', f'out.{ending}'}
    about = read_checkpoint(tmp_path / f'out.{ending}').rest['meta']['mmws']
    assert about['sha256'] == read_checkpoint(tmp_path / 'R-50-GN-WS.pth.tar').sha256
    assert about['source'] == 'R-50-GN-WS.pth.tar'
    if ending == 'pth':
        with in_scope('mmdet'):
            load_checkpoint(MODELS.build({'type': 'mmws.ResNet', 'depth': 50}), str(tmp_path / 'out.pth'), strict=True)
    else:
        with safe_open(tmp_path / 'out.safetensors', 'pt') as file:
            assert json.loads(file.metadata()['meta'])['mmws'] == about


@pytest.mark.parametrize(('arguments', 'message'), [
    (['nowhere.pth', 'out.pth'], 'checkpoint nowhere.pth not found'),
    (['bit.pth', 'out.pth'], "incompatible weights: timm's resnetv2"),
    (['r.pth', 'out.pth', '--to-rgb'], 'the input is RGB already'),
    (['r.pth', 'out.onnx'], 'expected a name that ends in .pth or .safetensors'),
    (['r.pth', 'no/out.pth'], 'no/out.pth: folder no not found'),
])
def test_a_users_mistake_is_one_line_and_nothing_is_written(arguments, message, tmp_path, monkeypatch):
    torch.save({'stages.0.blocks.0.conv1.weight': torch.ones(1)}, tmp_path / 'bit.pth')
    torch.save(shapes_of(), tmp_path / 'r.pth')
    monkeypatch.chdir(tmp_path)
    assert message in tool_error('convert_checkpoint.py', *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {'bit.pth', 'r.pth'}

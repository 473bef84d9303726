import re

import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config

from mmws import WSError, fold
from mmws.cli.onnx_export import _check_convs, _check_outputs, _Network, export_onnx
from mmws.ops.torch_compat import DYNAMIC
from tests.helpers.commands import run_tool, tool_error
from tests.helpers.models import DEMO, random_model
from tests.helpers.versions import needs_torch

pytestmark = needs_torch('2.6', 'the export to ONNX', DYNAMIC is not None)


def dimensions(value):
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def trained(name, tmp_path):
    model = random_model(Config.fromfile(DEMO / f'{name}.py'))
    torch.save(model.state_dict(), tmp_path / 'trained.pth')
    return model


@pytest.mark.parametrize(('name', 'names'), [
    ('mask_rcnn_r18_gnws_digits', ['p2', 'p3', 'p4', 'p5', 'p6']), ('deeplabv3_r18_gnws_digits', ['logits'])])
def test_onnxruntime_computes_the_outputs_of_the_network(name, names, tmp_path):
    model, out = trained(name, tmp_path), tmp_path / 'out.onnx'
    run_tool('export_onnx.py', str(DEMO / f'{name}.py'), str(tmp_path / 'trained.pth'), str(out))
    graph = onnx.load(out).graph
    assert [output.name for output in graph.output] == names
    assert dimensions(graph.input[0]) == ['batch', 3, 'height', 'width']
    assert all('height' in dimensions(output)[2] for output in graph.output)
    nodes = [node.op_type for node in graph.node]
    assert nodes.count('Conv') >= 28
    assert not {'Sqrt', 'LayerNormalization'} & set(nodes)  # no node standardizes weights
    image = torch.randn(2, 3, 97, 131)  # not a shape that the tool checks
    actual = onnxruntime.InferenceSession(out).run(None, {'image': image.numpy()})
    expected = ([model.encode_decode(image, [{'img_shape': (97, 131)}])] if names == ['logits']
                else model.extract_feat(image))
    assert len(expected) == len(actual) == len(names)
    for a, b in zip(expected, actual):
        assert (a - torch.from_numpy(b)).norm() <= 1e-4 * a.norm()
    assert {path.name for path in tmp_path.iterdir()} == {'trained.pth', 'out.onnx'}


@pytest.fixture(scope='module')
def backbone():
    config = Config({'default_scope': 'mmdet', 'model': {
        'type': 'SingleStageDetector', 'bbox_head': {'type': 'FCOSHead', 'num_classes': 2, 'in_channels': 8},
        'backbone': {'type': 'mmws.ResNet', 'depth': 18, 'base_channels': 8, 'stem_channels': 8}}})
    return random_model(config)


def test_an_unfolded_network_is_refused(backbone):
    with pytest.raises(WSError, match=r'\d+ of 20 Conv nodes compute their weight .*fold'):
        export_onnx(backbone)


def test_different_outputs_are_refused(backbone):
    folded = fold(backbone)
    content = export_onnx(folded)
    folded.backbone.gn1.weight.data *= 1.01
    with pytest.raises(WSError, match=r'onnxruntime computes different outputs for images of shape \(2, 3, 128, 160\)'):
        _check_outputs(content, _Network(folded).eval())


def test_the_outputs_of_a_backbone_are_named(backbone):
    graph = onnx.load_from_string(export_onnx(fold(backbone))).graph
    assert [output.name for output in graph.output] == ['c2', 'c3', 'c4', 'c5']


PSPNET = f"""
_base_ = '{DEMO}/deeplabv3_r18_gnws_digits.py'
model = dict(backbone=dict(base_channels=8, stem_channels=8), auxiliary_head=None, decode_head=dict(
    _delete_=True, type='PSPHead', in_channels=64, channels=8, num_classes=11, norm_cfg=dict(type='BN')))
"""


def test_a_network_that_depends_on_the_image_size_is_exported_for_one(tmp_path):
    config, weights, out = (str(tmp_path / name) for name in ('config.py', 'trained.pth', 'out.onnx'))
    (tmp_path / 'config.py').write_text(PSPNET)
    model = random_model(Config.fromfile(config))
    torch.save(model.state_dict(), weights)
    assert re.search('cannot export EncoderDecoder: .*fix it with --size HEIGHT WIDTH',
                     tool_error('export_onnx.py', config, weights, out))
    assert '--size: expected two positive numbers, got 0 96' in tool_error(
        'export_onnx.py', config, weights, out, '--size', '0', '96')
    run_tool('export_onnx.py', config, weights, out, '--size', '128', '96')
    assert dimensions(onnx.load(out).graph.input[0]) == ['batch', 3, 128, 96]
    image = torch.randn(2, 3, 128, 96)
    (logits,) = onnxruntime.InferenceSession(out).run(['logits'], {'image': image.numpy()})
    expected = model.encode_decode(image, [{'img_shape': (128, 96)}])
    assert (expected - torch.from_numpy(logits)).norm() <= 1e-4 * expected.norm()


def test_a_graph_without_convs_is_refused():
    with pytest.raises(WSError, match='0 of 0 Conv nodes'):
        _check_convs(onnx.GraphProto())


def test_a_users_mistake_is_one_line(tmp_path):
    config = str(DEMO / 'mask_rcnn_r18_gnws_digits.py')
    assert 'checkpoint nowhere.pth not found' in tool_error('export_onnx.py', config, 'nowhere.pth', 'x.onnx')
    assert 'config nowhere.py not found' in tool_error('export_onnx.py', 'nowhere.py', 'nowhere.pth', 'x.onnx')


def test_folded_and_unfolded_detectors_export_and_compile(backbone):
    image = torch.randn(1, 3, 64, 64)
    expected = backbone.extract_feat(image)
    for model in (backbone, fold(backbone)):
        network = model.backbone
        exported = torch.export.export(network, (image,)).module()(image)
        compiled = torch.compile(network, backend='aot_eager')(image)
        torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)

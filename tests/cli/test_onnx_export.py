import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config

from mmws import WSError, fold
from mmws.cli.onnx_export import _check_convs, _check_outputs, _Network, export_onnx
from tests.helpers.commands import run_tool, tool_error
from tests.helpers.models import DEMO, random_model


def trained(name, tmp_path):
    model = random_model(Config.fromfile(DEMO / f'{name}.py'))
    torch.save(model.state_dict(), tmp_path / 'trained.pth')
    return model


@pytest.mark.parametrize(('name', 'outputs'), [('mask_rcnn_r18_gnws_digits', 5), ('deeplabv3_r18_gnws_digits', 1)])
def test_onnxruntime_computes_the_outputs_of_the_network(name, outputs, tmp_path):
    model, out = trained(name, tmp_path), tmp_path / 'out.onnx'
    run_tool('export_onnx.py', str(DEMO / f'{name}.py'), str(tmp_path / 'trained.pth'), str(out))
    nodes = [node.op_type for node in onnx.load(out).graph.node]
    assert nodes.count('Conv') >= 28
    assert not {'Sqrt', 'LayerNormalization'} & set(nodes)  # no node standardizes weights
    image = torch.randn(2, 3, 97, 131)  # not a shape that the tool checks
    actual = onnxruntime.InferenceSession(out).run(None, {'image': image.numpy()})
    expected = ([model.encode_decode(image, [{'img_shape': (97, 131)}])] if outputs == 1
                else model.extract_feat(image))
    assert len(expected) == len(actual) == outputs
    for a, b in zip(expected, actual, strict=True):
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
        for a, b, c in zip(expected, exported, compiled, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)

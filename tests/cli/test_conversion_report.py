import json
from pathlib import Path

import pytest
from mmengine.config import Config
from rich.console import Console

from mmws.cli.conversion_report import inspect_conversion, write_config
from tests.helpers.commands import REPOSITORY, tool
from tests.helpers.versions import needs_weight_norm

RETINANET = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'


def text(report) -> str:
    console = Console(width=160)
    with console.capture() as printed:
        console.print(report.tree())
    return printed.get()


def test_the_tree_marks_each_conv_and_merges_equal_blocks():
    report = inspect_conversion(RETINANET, {'exclude': ['backbone.layer4.*']})
    lines = text(report).splitlines()
    for part in ('conv1 WS     ConvWS2d 3 -> 64, 7x7', 'gn1 norm   BatchNorm2d -> GroupNorm(32, 64)',
                 'cls_convs ... reg_convs 2 alike ModuleList', "excluded by 'backbone.layer4.*'",
                 'retina_cls plain  Conv2d 256 -> 720, 3x3: no norm follows: the output leaves the network'):
        assert any(part in line for line in lines), part
    assert len(lines) < 80
    content = report.as_dict()
    assert content['convolutions'] == len(content['standardized']) + len(content['plain']) == 38
    assert (content['modules, unchanged'], content['convolutions, not run']) == (len(content['plain']), 0)
    total = sum(parameter.numel() for parameter in report.model.parameters())
    assert content['parameters, before'] == content['parameters, after'] == total
    assert content['parameters in standardized weights'] < total


@pytest.mark.parametrize(('ws', 'counted', 'shown'), [
    pytest.param({'weight': 'wn', 'norm': 'SN'}, {
        'convolutions, standardized': 0, 'convolutions, weight-normalized': 20,
        'BatchNorm replaced by SwitchableNorm': 20}, 'conv1 wn     ParametrizedConv2d', marks=needs_weight_norm),
    ({'weight': 'plain', 'norm': 'keep'}, {'convolutions, standardized': 0}, 'plain  Conv2d 3 -> 64, 7x7: ws option'),
])
def test_other_norms_and_weights_are_reported(ws, counted, shown):
    report = inspect_conversion(RETINANET, ws)
    assert counted.items() <= report.as_dict().items()
    assert shown in text(report)


def test_a_conv_outside_the_dry_run_and_a_shared_conv_are_marked():
    report = inspect_conversion('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', {})
    assert report.totals['convolutions, not run'] == len(report.report.unseen) > 0
    shown = text(report)
    assert 'no norm follows: ReLU (not run, decided by the module tree)' in shown
    shown = text(inspect_conversion('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', {}))
    assert '(same module as bbox_head.cls_convs.0.0.conv)' in shown


@pytest.mark.parametrize('name', [RETINANET, str(REPOSITORY / 'configs' / 'demo' / 'mask_rcnn_r18_gnws_digits.py')])
def test_the_written_config_adds_the_prefix_once_and_keeps_the_other_keys(name, tmp_path):
    written = tmp_path / 'out.py'
    write_config(name, {'norm': 'keep'}, written)
    config = Config.fromfile(written)
    assert config.model.type.startswith('mmws.')
    assert not config.model.type.startswith('mmws.mmws.')
    assert config.model.ws == {'norm': 'keep'}
    assert 'optim_wrapper' in config
    assert len(written.read_text().splitlines()) == 2


@pytest.mark.parametrize(('arguments', 'message'), [
    (['mmdet::nope.py'], 'has no nope.py'),
    (['nope.py'], 'config nope.py not found; expected a path, or a stock config such as mmdet::retinanet/'),
    (['nosuchkit::a.py'], 'nosuchkit is not installed'),
    ([RETINANET, '--ws', 'nrom=keep'], "unknown ws option 'nrom': did you mean 'norm'?"),
    ([RETINANET, '--ws', "exclude=['nekc.*']"], "ws option exclude: 'nekc.*' matches no convolution of RetinaNet"),
    ([RETINANET, '--write', 'there.py'], 'there.py already exists; choose another name'),
    (['mmdet::_base_/default_runtime.py'], 'has no model'),
    (['mmdet::cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py'], 'cannot build the model without the mmws. prefix'),
])
def test_a_mistake_is_one_line(arguments, message, tmp_path):
    (tmp_path / 'there.py').write_text('kept')
    result = tool('report.py', *arguments, folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith('error: ')
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
    assert (tmp_path / 'there.py').read_text() == 'kept'


def test_the_tool_prints_the_tree_or_json_and_writes_the_config(tmp_path):
    shown = tool('report.py', RETINANET, '--write', 'out.py', folder=tmp_path)
    assert 'convolutions, standardized' in shown.stdout
    assert 'python tools/train.py out.py' in shown.stderr
    assert Path(tmp_path / 'out.py').is_file()
    printed = json.loads(tool('report.py', 'out.py', '--json', folder=tmp_path).stdout)
    assert len(printed['standardized']) == 20

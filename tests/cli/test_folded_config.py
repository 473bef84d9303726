"""Folded networks in the toolkit alone, in processes in which importing mmws fails."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config

from mmws import WSError, fold
from mmws.cli.folded_config import check_stock, to_stock
from tests.helpers.commands import REPOSITORY, run_tool, tool, tool_error
from tests.helpers.models import DEMO, random_model
from tests.helpers.versions import needs_weight_norm

MMDET_TEST = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'


@pytest.fixture
def without_mmws(tmp_path) -> dict[str, str]:
    """An environment in which importing mmws fails."""
    (tmp_path / 'blocked').mkdir()
    (tmp_path / 'blocked' / 'mmws.py').write_text("raise ImportError('mmws is blocked')\n")
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path / 'blocked')}
    blocked = subprocess.run([sys.executable, '-c', 'import mmws'], cwd=tmp_path, env=environment, capture_output=True)
    assert b'mmws is blocked' in blocked.stderr
    return environment


@pytest.fixture
def detector(digits, tmp_path) -> Path:
    """Folder with the demo config and a checkpoint of random weights."""
    loader = f"dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='{digits}/'))"
    (tmp_path / 'config.py').write_text(
        f"_base_ = '{DEMO}/mask_rcnn_r18_gnws_digits.py'\nval_dataloader = {loader}\ntest_dataloader = val_dataloader\n"
        f"val_evaluator = dict(ann_file='{digits}/annotations/val.json')\ntest_evaluator = val_evaluator\n"
        "model = dict(test_cfg=dict(rcnn=dict(score_thr=0.1)))\n")
    model = random_model(Config.fromfile(tmp_path / 'config.py'))
    meta = {'dataset_meta': {'classes': tuple('0123456789')}, 'epoch': 1}
    torch.save({'state_dict': model.state_dict(), 'meta': meta, 'optimizer': {}}, tmp_path / 'trained.pth')
    return tmp_path


def test_the_toolkit_alone_predicts_and_scores_the_same(detector, without_mmws, monkeypatch):
    monkeypatch.chdir(detector)
    run_tool('fold_checkpoint.py', 'config.py', 'trained.pth', 'out')
    assert 'mmws.' not in (detector / 'out.py').read_text()
    assert (detector / 'out.py').read_text().endswith('\n')  # users may add lines
    assert b'mmws.' not in (detector / 'out.pth').read_bytes()
    assert torch.load(detector / 'out.pth', weights_only=True)['meta']['dataset_meta']['classes'][9] == '9'
    before = tool('test.py', 'config.py', 'trained.pth', '--out', 'before.pkl', folder=detector)
    assert before.returncode == 0, before.stderr
    after = subprocess.run([sys.executable, MMDET_TEST, 'out.py', 'out.pth', '--out', 'after.pkl'], cwd=detector,
                           env=without_mmws, capture_output=True, text=True)
    assert after.returncode == 0, after.stderr
    scores = [re.findall(r'coco/(?:bbox|segm)_mAP\w*: (\S+)', result.stdout + result.stderr)
              for result in (before, after)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 12
    before, after = (pickle.loads((detector / f'{name}.pkl').read_bytes()) for name in ('before', 'after'))
    assert len(before) == len(after) == 3
    for a, b in zip(before, after):
        a, b = a['pred_instances'], b['pred_instances']
        assert len(a['scores']) > 0
        assert torch.equal(a['labels'], b['labels'])
        torch.testing.assert_close(a['scores'], b['scores'], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a['bboxes'], b['bboxes'], rtol=1e-5, atol=1e-3)
        assert a['masks'] == b['masks']


BUILDS = '''
import sys, torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
config = Config.fromfile('out.py')
init_default_scope(config.default_scope)
model = MODELS.build(config.model)
model.load_state_dict(torch.load('out.pth', weights_only=True)['state_dict'], strict=True)
torch.save(model.eval()(torch.load('image.pth'), mode='tensor'), 'prediction.pth')
assert 'mmws' not in sys.modules
'''


def test_a_segmenter_in_the_toolkit_alone(tmp_path, without_mmws, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(
        f"_base_ = '{DEMO}/deeplabv3_r18_gnws_digits.py'\nmodel = dict(ws=dict(num_groups=16))\n")
    model = random_model(Config.fromfile('config.py'))
    torch.save(model.state_dict(), 'trained.pth')
    run_tool('fold_checkpoint.py', 'config.py', 'trained.pth', 'out')
    image = torch.randn(1, 3, 65, 97)
    torch.save(image, 'image.pth')
    subprocess.run([sys.executable, '-c', BUILDS], cwd=tmp_path, env=without_mmws, check=True)
    expected, actual = model(image, mode='tensor'), torch.load('prediction.pth')
    assert (expected - actual).norm() <= 1e-5 * expected.norm()


def test_a_network_of_mmpretrain_can_be_folded_for_the_toolkit_alone():
    config = Config.fromfile(REPOSITORY / 'configs' / 'resnet50_gnws_in1k.py')
    folded = fold(random_model(config))
    stock = to_stock(config, folded)
    assert 'mmws.' not in stock.pretty_text
    check_stock(stock, folded)


def resnet(**changes):
    norm = {'type': 'SyncBN', 'requires_grad': True}
    backbone = {'type': 'mmws.ResNet', 'depth': 18, 'base_channels': 8, 'stem_channels': 8, 'norm_cfg': norm}
    return Config({'default_scope': 'mmdet', 'custom_imports': {'imports': ['mmws.registry', 'os']}, 'model': {
        'type': 'SingleStageDetector', 'backbone': {**backbone, **changes}, 'bbox_head': {
            'type': 'FCOSHead', 'num_classes': 2, 'in_channels': 8, 'conv_cfg': {'type': 'ConvWS', 'eps': 1e-4}}}})


@pytest.mark.parametrize(('changes', 'norm'), [
    ({}, {'type': 'GN', 'num_groups': 8}),
    ({'norm_cfg': None}, {'type': 'GN', 'num_groups': 8}),  # ResNet's default is BatchNorm
    ({'ws': {'num_groups': 2}, 'norm_cfg': {'type': 'BN'}}, {'type': 'GN', 'num_groups': 2}),
    ({'ws': {'norm': 'keep'}}, {'type': 'SyncBN', 'requires_grad': True}),
    ({'norm_cfg': {'type': 'GN', 'num_groups': 4}}, {'type': 'GN', 'num_groups': 4}),
    ({'ws': {'norm': 'LN', 'weight': 'plain'}}, {'type': 'GN', 'num_groups': 1}),
    pytest.param({'ws': {'norm': 'IN', 'weight': 'wn'}}, {'type': 'IN', 'affine': True}, marks=needs_weight_norm),
])
def test_norm_cfg_of_the_stock_config(changes, norm):
    config = resnet(**changes)
    if config.model.backbone.norm_cfg is None:
        del config.model.backbone.norm_cfg
    config.model.backbone.num_stages, config.model.backbone.out_indices = 1, (0,)
    config.model.backbone.strides = config.model.backbone.dilations = (1,)
    folded = fold(random_model(config))
    stock = to_stock(config, folded)
    check_stock(stock, folded)
    assert stock.model.backbone.type == 'ResNet'
    assert stock.model.backbone.norm_cfg == norm
    assert stock.model.bbox_head.conv_cfg == {'type': 'Conv2d'}
    assert 'norm_cfg' not in stock.model.bbox_head  # outside of the prefix
    assert stock.custom_imports.imports == ['os']
    groups = 2 if norm.get('num_groups') == 1 else 1
    stock.model.backbone.norm_cfg = {'type': 'GN', 'num_groups': groups}
    with pytest.raises(WSError, match=r'backbone\.\w+ is .*Norm.* the config builds backbone\.\w+, GroupNorm\('):
        check_stock(stock, folded)


def test_different_numbers_of_groups_are_refused():
    config = resnet()
    with pytest.raises(WSError, match=r'backbone\.gn1 8 and backbone\.layer2\.0\.gn1 16 and .*num_groups=8\)'):
        to_stock(config, fold(random_model(config)))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'ws': {'norm': 'BCN'}},
     r"model\.backbone: ws=dict\(norm='BCN'\) replaced its BatchNorm by a norm that only mmws has"),
    ({'norm_cfg': {'type': 'mmws.SN'}}, r'model\.backbone\.norm_cfg: mmws\.SN exists in mmws only'),
])
def test_norms_that_only_mmws_has_are_refused(changes, message):
    config = resnet(**changes)
    with pytest.raises(WSError, match=message):
        to_stock(config, fold(random_model(config)))


@pytest.mark.parametrize(('arguments', 'message'), [
    (['nowhere.py', 'x.pth', 'out'], 'config nowhere.py not found'),
    ([str(DEMO / 'mask_rcnn_r18_gnws_digits.py'), 'nowhere.pth', 'out'], 'checkpoint nowhere.pth not found'),
    ([str(DEMO / 'mask_rcnn_r18_gnws_digits.py'), 'x.pth', 'out'], 'x.pth does not fit'),
    (['jhu.py', 'jhu.pth', 'out'], 'model.decode_head: mmws.DeepLabV3Head exists in mmws only'),
])
def test_a_users_mistake_is_one_line_and_no_file_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'a': torch.ones(1)}, 'x.pth')
    if arguments[1] == 'jhu.pth':
        Path('jhu.py').write_text(
            f"_base_ = '{REPOSITORY}/configs/deeplabv3_r101_gnws_voc12aug_jhu.py'\n"
            'model = dict(pretrained=None, backbone=dict(depth=18), decode_head=dict(in_channels=512, channels=32))\n')
        torch.save(random_model(Config.fromfile('jhu.py')).state_dict(), 'jhu.pth')
    assert message in tool_error('fold_checkpoint.py', *arguments)
    assert not list(tmp_path.glob('out*'))

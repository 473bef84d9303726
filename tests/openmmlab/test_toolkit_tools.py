"""Other ways into mmdet, with the config of the detection demo: analysis tools, options, the inferencer, mim."""

from __future__ import annotations

import json
import re
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Callable

import cv2
import mmdet
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.fileio import load

from mmws import ConvWS2d, stock_config
from tests.helpers.commands import REPOSITORY, run, run_tool, tool, tool_error

CONFIG = REPOSITORY / 'configs' / 'demo' / 'mask_rcnn_r18_gnws_digits.py'
TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'analysis_tools'
SMALL = '''
data = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='{digits}/'))
train_dataloader, val_dataloader, test_dataloader = dict(**data), dict(**data), dict(**data)
val_evaluator = dict(ann_file='{digits}/annotations/val.json')
test_evaluator = val_evaluator
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, conv_out_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16)))
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1))
work_dir = 'work_dir'
'''
BOXES = ['--cfg-options', 'model.roi_head.mask_head=None', 'test_evaluator.metric=bbox']


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory) -> Path:
    """Folder with config.py and the work_dir of its training."""
    folder = tmp_path_factory.mktemp('run')
    (folder / 'config.py').write_text(f"_base_ = '{CONFIG}'\n{SMALL.format(digits=digits)}")
    result = tool('train.py', 'config.py', folder=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def analyze(trained, monkeypatch, capsys) -> Callable[..., str]:
    """Return a function that runs a tool of mmdet in the folder of the training and returns its output."""
    def analyze(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, 'argv', [name, *arguments])
        runpy.run_path(str(TOOLS / name), run_name='__main__')
        return capsys.readouterr().out
    monkeypatch.chdir(trained)
    return analyze


def test_get_flops_counts_the_convolutions_and_the_parameters(analyze):
    arguments = 'config.py', '--num-images', '1'
    converted = analyze('get_flops.py', *arguments)
    stock = analyze('get_flops.py', *arguments, '--cfg-options', 'model.type=MaskRCNN')
    (flops, parameters), (stock_flops, stock_parameters) = (
        re.findall(r'(?:Flops|Params): ([\d.]+[KMG])', output) for output in (converted, stock))
    assert parameters == stock_parameters
    assert flops[-1] == stock_flops[-1]
    assert float(flops[:-1]) == pytest.approx(float(stock_flops[:-1]), rel=0.05)  # GroupNorm has more than BatchNorm


def test_browse_dataset_draws_every_image(analyze, tmp_path):
    analyze('browse_dataset.py', 'config.py', '--not-show', '--output-dir', str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f'{index:06}.jpg' for index in range(6)]
    assert all(cv2.imread(str(path)).std() > 10 for path in tmp_path.iterdir())


def test_analyze_logs_reads_the_log(analyze, trained):
    if 'import seaborn' in (TOOLS / 'analyze_logs.py').read_text():
        pytest.importorskip('seaborn', reason='upstream mmdet draws with seaborn')
    (log,) = trained.glob('work_dir/*/vis_data/scalars.json')
    (_, second, *_) = [json.loads(line) for line in log.read_text().splitlines()]
    assert f'average iter time: {second["time"]:.4f} s/iter' in analyze('analyze_logs.py', 'cal_train_time', str(log))


def test_confusion_matrix_of_the_predictions_that_a_test_writes(analyze, trained, tmp_path):
    predictions = tmp_path / 'predictions.pkl'
    run_tool('test.py', 'config.py', 'work_dir/iter_2.pth', '--out', str(predictions))
    assert {'masks', 'labels'} <= set(load(predictions)[0]['pred_instances'])
    analyze('confusion_matrix.py', 'config.py', str(predictions), str(tmp_path))
    assert cv2.imread(str(tmp_path / 'confusion_matrix.png')).std() > 10


def test_tta_merges_the_boxes_of_an_image_and_its_mirror_image(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    found = {}
    for options in ([], ['--tta']):
        path = tmp_path / f'{len(options)}.pkl'
        run_tool('test.py', 'config.py', 'work_dir/iter_2.pth', '--out', str(path), *options, *BOXES)
        found[len(options)] = load(path)[0]['pred_instances']
    assert len(found[1]['scores']) > 0
    assert not torch.equal(found[0]['bboxes'][:10], found[1]['bboxes'][:10])


def test_amp_trains_on_a_gpu_and_is_one_line_without(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    arguments = 'config.py', '--amp', '--work-dir', str(tmp_path)
    if torch.cuda.is_available():
        run_tool('train.py', *arguments)
        saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
        assert saved['optimizer']['loss_scaler']
    else:
        assert 'only available training on gpu' in tool_error('train.py', *arguments)


def test_the_inferencer_of_mmdet_takes_a_path_or_the_config_in_the_checkpoint(trained, digits):
    config, checkpoint = str(trained / 'config.py'), str(trained / 'work_dir' / 'iter_2.pth')
    image = str(digits / 'images' / 'val' / '000000.jpg')
    expected = inference_detector(init_detector(config, checkpoint, device='cpu'), image).pred_instances
    for given in ({'model': config}, {}):
        inferencer = DetInferencer(**given, weights=checkpoint, device='cpu')
        assert type(inferencer.model.backbone.conv1) is ConvWS2d
        found = inferencer(image, no_save_vis=True, no_save_pred=True)['predictions'][0]
        torch.testing.assert_close(torch.tensor(found['bboxes']), expected.bboxes)
        assert len(found['masks']) == len(expected) > 0


def test_the_inferencer_of_mmdet_takes_a_config_of_mmws():
    inferencer = DetInferencer(stock_config('mmws::mask_rcnn_r50_gnws.py'), device='cpu')
    assert type(inferencer.model.backbone.conv1) is ConvWS2d


@pytest.fixture(scope='module')
def mim(trained) -> Callable[..., str]:
    """Return a function that runs a command of mim on mmdet in the folder of the training and returns its output."""
    names = {'onedl-mim': 'onedl-mmdetection', 'openmim': 'mmdet'}
    package = next((names[name] for name in names if is_installed(name) and is_installed(names[name])), None)
    if package is None:
        pytest.skip('needs onedl-mim beside onedl-mmdetection, or openmim beside mmdet')

    def mim(command: str, *arguments: str) -> str:
        result = run(sys.executable, '-m', 'mim', command, package, *arguments, folder=trained)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr
    return mim


def is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def test_mim_trains_and_tests(mim, trained):
    output = mim('train', 'config.py', '--work-dir', 'mim')
    assert 'mmws.MaskRCNN: Weight Standardization' in output
    assert 'Training finished successfully' in output
    output = mim('test', 'config.py', '--checkpoint', 'mim/iter_2.pth', '--work-dir', 'mim')
    assert 'coco/segm_mAP' in output
    assert 'Testing finished successfully' in output


def test_mim_runs_the_tools_of_mmdet(mim, tmp_path):
    assert 'Flops: ' in mim('run', 'get_flops', 'config.py', '--num-images', '1')
    mim('run', 'browse_dataset', 'config.py', '--not-show', '--output-dir', str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 6

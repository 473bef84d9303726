"""Tiny runs of mmdet and mmseg with their own scripts: train, test, load, resume."""

import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import mmdet
import mmseg
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmseg.apis import inference_model, init_model

from mmws import ConvWS2d
from mmws.checkpoint import read_checkpoint
from mmws.openmmlab.safe_globals import allow_log_history
from tests.helpers.commands import REPOSITORY, free_port, run, tool

CONFIG = REPOSITORY / 'configs' / 'demo' / 'mask_rcnn_r18_gnws_digits.py'
SEGMENTATION_CONFIG = REPOSITORY / 'configs' / 'demo' / 'deeplabv3_r18_gnws_digits.py'
MMDET_TRAIN = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
MMSEG_TOOLS = Path(mmseg.__file__).parent / '.mim' / 'tools'


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory) -> Path:
    """Folder with config.py and the work_dir of its training."""
    folder = tmp_path_factory.mktemp('run')
    data = f"data_root='{digits}/'"
    (folder / 'config.py').write_text(
        f"_base_ = '{CONFIG}'\n"
        f'train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict({data}))\n'
        f'val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict({data}))\n'
        'test_dataloader = val_dataloader\n'
        f"val_evaluator = dict(ann_file='{digits}/annotations/val.json')\n"
        'test_evaluator = val_evaluator\n'
        'train_cfg = dict(max_iters=4, val_interval=4)\n'
        'default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))\n'
        'work_dir = "work_dir"\n')
    result = tool('train.py', 'config.py', folder=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_train_test_and_summarize(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / 'run')
    checkpoint = (folder / 'work_dir' / 'last_checkpoint').read_text()
    assert Path(checkpoint).name == 'iter_4.pth'
    pictures = folder / 'work_dir' / 'pictures'
    tested = tool('test.py', 'config.py', checkpoint, '--show-dir', str(pictures), folder=folder)
    assert tested.returncode == 0, tested.stderr
    assert len(list(pictures.iterdir())) == 3
    summary = tool('summarize.py', 'work_dir', folder=folder)
    assert summary.returncode == 0, summary.stderr
    for expected in ('box_ap', 'mask_ap', 'images_per_step │ 1', 'norm            │ GN', 'predictions.png'):
        assert expected in summary.stdout
    assert cv2.imread(str(folder / 'work_dir' / 'predictions.png')).std() > 10


def test_the_dumped_config_and_the_checkpoint_can_be_loaded(trained, digits):
    config = Config.fromfile(trained / 'work_dir' / 'config.py')
    model = init_detector(config, str(trained / 'work_dir' / 'iter_4.pth'), device='cpu')
    assert type(model.backbone.conv1) is ConvWS2d
    allow_log_history()  # OneDL's mmengine removes it after each load
    saved = read_checkpoint(trained / 'work_dir' / 'iter_4.pth').tensors
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    image = cv2.imread(str(digits / 'images' / 'val' / '000000.jpg'))
    assert {'bboxes', 'labels', 'scores', 'masks'} <= set(inference_detector(model, image).pred_instances.keys())


def test_the_toolkits_own_script_resumes(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / 'run')
    (folder / 'work_dir' / 'iter_4.pth').unlink()
    (folder / 'work_dir' / 'last_checkpoint').write_text(str(folder / 'work_dir' / 'iter_2.pth'))
    result = run(sys.executable, str(MMDET_TRAIN), 'config.py', '--resume', folder=folder)
    assert result.returncode == 0, result.stderr
    assert 'resumed epoch: 0, iter: 2' in result.stdout + result.stderr
    assert (folder / 'work_dir' / 'iter_4.pth').is_file()


def test_a_nan_loss_is_one_line_with_step_and_layer(trained, tmp_path):
    options = ['default_hooks.checkpoint.interval=1', 'optim_wrapper.optimizer.lr=1e20', 'optim_wrapper.clip_grad=None']
    result = tool('train.py', 'config.py', '--work-dir', str(tmp_path), '--cfg-options', *options, folder=trained)
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert re.match(r'error: step \d+: the loss is not finite \(.*loss_.*\); the first NaN or Inf comes from '
                    r'\w+\.[\w.]+ \(\w+\).*\. The weights are still valid; the last good checkpoint is ', error), error
    assert 'Traceback' not in result.stderr
    last = torch.load((tmp_path / 'last_checkpoint').read_text(), weights_only=False)['state_dict']
    assert all(bool(value.isfinite().all()) for value in last.values())


@pytest.fixture
def coco(digits, tmp_path) -> Path:
    """Folder in which data/coco has the digits with the class names of COCO."""
    names = CocoDataset.METAINFO['classes']
    root = tmp_path / 'data' / 'coco'
    (root / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (root / f'{split}2017').symlink_to(digits / 'images' / split)
        annotations = json.loads((digits / 'annotations' / f'{split}.json').read_text())
        annotations['categories'] = [{'id': i + 1, 'name': name} for i, name in enumerate(names)]
        (root / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(annotations))
    return tmp_path


def test_one_key_on_a_stock_config_with_the_toolkits_own_script(coco):
    config = MMDET_TRAIN.parents[1] / 'configs' / 'mask_rcnn' / 'mask-rcnn_r50_fpn_1x_coco.py'
    smaller = ['model.backbone.init_cfg=None', 'train_dataloader.dataset.pipeline.2.scale=(128,128)',
               'val_dataloader.dataset.pipeline.1.scale=(128,128)', 'train_cfg.max_epochs=1']
    smaller += [f'{split}_dataloader.{key}' for split in ('train', 'val')
                for key in ('num_workers=0', 'persistent_workers=False')]
    result = run(sys.executable, str(MMDET_TRAIN), str(config), '--cfg-options', 'model.type=mmws.MaskRCNN', *smaller,
                 folder=coco)
    assert result.returncode == 0, result.stderr
    assert 'mmws.MaskRCNN: Weight Standardization: 53 convolutions standardized' in result.stdout + result.stderr
    assert 'Saving checkpoint at 1 epochs' in result.stdout + result.stderr
    assert 'Epoch(val) [1][3/3]' in result.stdout + result.stderr


@pytest.fixture(scope='module')
def segmenter(digits, tmp_path_factory) -> Path:
    """Folder with the config of the segmentation demo, for a few images."""
    folder = tmp_path_factory.mktemp('segmenter')
    small = f"num_workers=0, persistent_workers=False, dataset=dict(data_root='{digits}')"
    (folder / 'config.py').write_text(
        f"_base_ = '{SEGMENTATION_CONFIG}'\n"
        f'train_dataloader = dict({small})\nval_dataloader = dict({small})\ntest_dataloader = val_dataloader\n'
        'train_cfg = dict(max_iters=2, val_interval=2)\n'
        'default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))\nwork_dir = "work_dir"\n')
    return folder


def test_segmentation_trains_tests_and_infers_with_mmsegs_own_scripts(segmenter, digits):
    trained = run(sys.executable, str(MMSEG_TOOLS / 'train.py'), 'config.py', folder=segmenter)
    assert trained.returncode == 0, trained.stderr
    checkpoint = segmenter / 'work_dir' / 'iter_2.pth'
    tested = run(sys.executable, str(MMSEG_TOOLS / 'test.py'), 'config.py', str(checkpoint), '--work-dir', 'work_dir',
                 '--show-dir', str(segmenter / 'work_dir' / 'pictures'), folder=segmenter)
    assert tested.returncode == 0, tested.stderr
    assert 'mIoU' in tested.stdout + tested.stderr
    summary = tool('summarize.py', 'work_dir', folder=segmenter)
    assert 'miou' in summary.stdout, summary.stderr
    assert cv2.imread(str(segmenter / 'work_dir' / 'predictions.png')).std() > 10
    model = init_model(Config.fromfile(segmenter / 'work_dir' / 'config.py'), str(checkpoint), device='cpu')
    assert type(model.backbone.stem[0]) is ConvWS2d
    prediction = inference_model(model, str(digits / 'images' / 'val' / '000000.jpg')).pred_sem_seg.data
    assert prediction.shape == (1, 128, 128)


def test_batch_norm_fails_at_batch_size_1_and_the_prefix_trains(segmenter):
    stock = tool('train.py', 'config.py', '--work-dir', 'bn', '--cfg-options', 'model.type=EncoderDecoder',
                 folder=segmenter)
    assert stock.returncode == 1
    assert 'Expected more than 1 value per channel when training' in stock.stderr
    prefixed = tool('train.py', 'config.py', '--work-dir', 'gnws', folder=segmenter)
    assert prefixed.returncode == 0, prefixed.stderr


def test_labels_out_of_range_are_one_line_with_the_file(segmenter, digits, tmp_path):
    data = shutil.copytree(digits, tmp_path / 'digits')
    for path in (data / 'masks' / 'train').iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) + 20)
    for workers in (['num_workers=0', 'persistent_workers=False'], ['num_workers=1', 'persistent_workers=True']):
        options = [f'train_dataloader.{option}' for option in [*workers, f'dataset.data_root={data}']]
        result = tool('train.py', 'config.py', '--work-dir', str(tmp_path), '--cfg-options', *options, folder=segmenter)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith(f'error: {data}/masks/train/0000')
        assert 'has the labels [20' in result.stderr.splitlines()[-1]
        assert 'Traceback' not in result.stderr


def test_two_processes_train_and_test_through_the_launcher(segmenter, tmp_path):
    folder = shutil.copytree(segmenter, tmp_path / 'run', ignore=shutil.ignore_patterns('work_dir'))
    with (folder / 'config.py').open('a') as file:
        file.write('model_wrapper_cfg = dict(type="MMDistributedDataParallel", gradient_as_bucket_view=True)\n')
    for script, arguments in (('dist_train.sh', []), ('dist_test.sh', [str(folder / 'work_dir' / 'iter_2.pth')])):
        result = run(str(REPOSITORY / 'tools' / script), 'config.py', *arguments, '2', '--cfg-options',
                     'randomness.seed=3', folder=folder, PORT=f'{free_port()}')
        output = result.stdout + result.stderr
        assert result.returncode == 0, output
        for expected in ('GPU number: 2', 'Distributed launcher: pytorch', 'seed: 3', 'mIoU'):
            assert expected in output
    assert torch.load(folder / 'work_dir' / 'iter_2.pth', weights_only=False)['meta']['iter'] == 2
    wrapper = Config.fromfile(folder / 'work_dir' / 'config.py').model_wrapper_cfg
    assert wrapper == {'type': 'MMDistributedDataParallel', 'gradient_as_bucket_view': True, 'device_ids': None}

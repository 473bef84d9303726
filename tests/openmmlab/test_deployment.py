"""Folded networks in onnxruntime, through mmdeploy, with the files of docs/deployment.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.helpers.commands import REPOSITORY, run, tool
from tests.helpers.models import DEMO

pytest.importorskip('mmdeploy', reason='needs mmdeploy 1.3.1: see docs/deployment.md')

PAGE = (REPOSITORY / 'docs' / 'deployment.md').read_text()
FILES = dict(re.findall(r'^`(\w+\.py)`\n```python\n(.*?)```$', PAGE, re.M | re.S))
SCORE = re.search(r"^model\['test_cfg'\].*\n", PAGE, re.M)[0]
CONFIG = '''
_base_ = '{demo}'
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader, dataset=dict(data_root='{digits}/'))
test_dataloader = dict(**loader, dataset=dict(data_root='{digits}/', {data}))
val_dataloader = val_cfg = val_evaluator = None
train_cfg = dict(max_iters={steps})
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50)]
work_dir = '.'
{more}
'''
DETECTOR = {  # the network is tested on the six images that it learned: others would need a longer training
    'demo': DEMO / 'mask_rcnn_r18_gnws_digits.py', 'steps': 200,
    'data': "ann_file='annotations/train.json', data_prefix=dict(img='images/train/')",
    'more': "test_evaluator = dict(ann_file='{digits}/annotations/train.json')", 'options': FILES['test_options.py'],
    'score': 'model.test_cfg.rcnn.score_thr=0.5'}  # mmdeploy has a single box for the classes of a proposal
SEGMENTER = {
    'demo': DEMO / 'deeplabv3_r18_gnws_digits.py', 'steps': 70,
    'data': "data_prefix=dict(img_path='images/train', seg_map_path='masks/train')",
    'more': 'model = dict(ws=dict(num_groups=16))', 'options': "_base_ = 'CONFIG'", 'score': ''}


def output(result) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def scores(result) -> dict[str, float]:
    """Return the metrics that a test printed, from 0 to 1."""
    found = dict(re.findall(r'(coco/\w+_mAP|mIoU): ([\d.]+)', output(result)))
    return {name: float(value) / (100 if name == 'mIoU' else 1) for name, value in found.items()}


def train(network: dict, digits: Path, folder: Path) -> str:
    """Train a network on six images in ``folder``, fold it, and return the name of its checkpoint."""
    more = network['more'].replace('{digits}', str(digits))
    (folder / 'config.py').write_text(CONFIG.format(**{**network, 'digits': digits, 'more': more}))
    output(tool('train.py', 'config.py', folder=folder))
    checkpoint = f'iter_{network["steps"]}.pth'
    (folder / 'options.py').write_text(network['options'].replace('CONFIG', 'config.py'))
    output(tool('fold_checkpoint.py', 'options.py', checkpoint, 'folded', folder=folder))
    if network['score']:
        with open(folder / 'folded.py', 'a') as config:
            config.write(SCORE)
    return checkpoint


@pytest.mark.parametrize(('network', 'deploy', 'names'), [
    (DETECTOR, 'mask_rcnn.py', ['coco/bbox_mAP', 'coco/segm_mAP']), (SEGMENTER, 'deeplabv3.py', ['mIoU'])])
def test_onnxruntime_scores_as_the_toolkit(network, deploy, names, digits, tmp_path):
    checkpoint = train(network, digits, tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    image = str(digits / 'images' / 'train' / '000000.jpg')
    output(run(sys.executable, 'export.py', deploy, 'folded.py', 'folded.pth', image, 'out.onnx', folder=tmp_path))
    score = ['--cfg-options', network['score']] if network['score'] else []
    expected = scores(tool('test.py', 'options.py', checkpoint, *score, folder=tmp_path))
    actual = scores(run(sys.executable, 'evaluate.py', deploy, 'folded.py', 'out.onnx', folder=tmp_path))
    assert list(expected) == names
    assert min(expected.values()) > 0.1
    assert actual == pytest.approx(expected, abs=1e-3)
    check_file(tmp_path / 'out.onnx')


def check_file(path: Path) -> None:
    """Assert that onnxruntime runs the file alone, for another image size and two images."""
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {''}
    assert 'NonMaxSuppression' in {node.op_type for node in graph.node} or len(graph.output) == 1
    images = np.random.default_rng(0).standard_normal((2, 3, 96, 160), dtype=np.float32)
    for value in onnxruntime.InferenceSession(path).run(None, {'input': images}):
        assert len(value) == 2

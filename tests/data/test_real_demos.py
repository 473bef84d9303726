"""The demos on real images, shortened to two steps: ``make demo DATA=nuclei`` and ``make demo-seg DATA=camvid``."""

import json
import subprocess
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config
from torch import nn

from mmws.cli.load_model import build_model
from tests.data.test_converters import SHARED, needs_shared
from tests.helpers.commands import REPOSITORY, tool

CONFIGS = {name: REPOSITORY / 'configs' / name / f'{network}_gnws_{name}.py'
           for name, network in (('nuclei', 'mask_rcnn_r18'), ('camvid', 'deeplabv3_r18'))}


@needs_shared
@pytest.mark.parametrize(('name', 'metrics'), [('nuclei', {'box_ap', 'mask_ap'}), ('camvid', {'miou'})])
def test_train_test_and_summarize(name, metrics, tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / name).symlink_to(SHARED / name)
    loader = 'dict(num_workers=0, persistent_workers=False, dataset=dict(indices=3))'
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(CONFIGS[name])!r}\n'
        f'train_dataloader = {loader}\nval_dataloader = {loader}\ntest_dataloader = {loader}\n'
        'train_cfg = dict(max_iters=2, val_interval=2)\n'
        'default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))\n')
    for arguments in (['train.py', 'config.py', '--work-dir', 'out'],
                      ['test.py', 'config.py', 'out/iter_2.pth', '--work-dir', 'out', '--show-dir',
                       str(tmp_path / 'out' / 'pictures')],
                      ['summarize.py', 'out']):
        result = tool(arguments[0], *arguments[1:], folder=tmp_path)
        assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert metrics < summary.keys()
    assert (summary['steps'], summary['images_per_step'], summary['norm'], summary['weight']) == (2, 1, 'GN', 'ws')
    for picture in ('curves.png', 'predictions.png'):
        assert cv2.imread(str(tmp_path / 'out' / picture)).std() > 5


@pytest.mark.parametrize('path', CONFIGS.values(), ids=[*CONFIGS])
def test_the_form_with_batch_norm_in_the_docstring_can_be_built(path):
    assert '--cfg-options model.ws.norm=keep model.ws.weight=plain' in ' '.join(path.read_text().split())
    config = Config.fromfile(path)
    config.merge_from_dict({'model.ws.norm': 'keep', 'model.ws.weight': 'plain'})
    model = build_model(config)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.GroupNorm) for module in model.modules())


@pytest.mark.parametrize(('target', 'name'), [('demo', 'nuclei'), ('demo-seg', 'camvid')])
def test_make_runs_the_config_of_the_data(target, name):
    commands = subprocess.run(['make', '-n', target, f'DATA={name}'], cwd=REPOSITORY, capture_output=True, text=True,
                              check=True).stdout
    path = CONFIGS[name].relative_to(REPOSITORY)
    assert f'tools/get_data.py {name}' in commands
    assert f'tools/train.py {path} --work-dir work_dirs/{target}-{name} --resume' in commands
    assert Path(REPOSITORY / path).is_file()

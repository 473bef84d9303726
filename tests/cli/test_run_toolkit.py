import sys
from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmws import WSError
from mmws.cli.run_toolkit import toolkit_script_path
from tests.helpers.commands import REPOSITORY, run, tool

COCO_CONFIG = str(REPOSITORY / 'configs' / 'mask_rcnn_r50_gnws.py')


@pytest.mark.parametrize(('name', 'arguments', 'message'), [
    ('train.py', [], r'expected tools/train.py CONFIG [OPTIONS]'),
    ('train.py', ['--work-dir', 'x'], 'got --work-dir x'),
    ('train.py', ['configs/nope.py'], 'config configs/nope.py not found'),
    ('train.py', [f'{REPOSITORY}/configs/mask_rcnn_r50.py'], "did you mean 'mask_rcnn_r50_gnws.py'"),
    ('train.py', [COCO_CONFIG], 'needs data/coco/annotations/instances_train2017.json, which does not exist; get COCO'),
    ('train.py', [f'{REPOSITORY}/configs/demo/mask_rcnn_r18_gnws_digits.py'], 'run `python tools/make_digits.py`'),
    ('test.py', [COCO_CONFIG], 'expected tools/test.py CONFIG CHECKPOINT [OPTIONS]'),
    ('test.py', [COCO_CONFIG, 'nope.pth'], 'checkpoint nope.pth not found'),
    ('make_digits.py', [str(REPOSITORY / 'tests')], 'error: '),
    ('summarize.py', ['nowhere'], 'has no */vis_data/scalars.json with training steps'),
])
def test_a_users_mistake_is_one_line(name, arguments, message, tmp_path):
    if name == 'make_digits.py':
        (tmp_path / 'annotations').mkdir()
        (tmp_path / 'annotations' / 'train.json').write_text('{}')
        arguments = [str(tmp_path)]
    result = tool(name, *arguments, folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
    assert message in result.stderr


def test_a_wrong_option_in_the_config_is_one_line(digits, tmp_path):
    config = tmp_path / 'wrong.py'
    config.write_text(f"_base_ = '{REPOSITORY}/configs/demo/mask_rcnn_r18_gnws_digits.py'\n"
                      f"model = dict(ws=dict(norms='GN'))\n")
    options = [f'{loader}.dataset.data_root={digits}/' for loader in ('train_dataloader', 'val_dataloader')]
    options += [f'val_evaluator.ann_file={digits}/annotations/val.json']
    result = tool('train.py', str(config), '--cfg-options', *options, folder=tmp_path)
    assert result.returncode == 1
    assert "error: unknown ws option 'norms': did you mean 'norm'" in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize('name', ['train.py', 'test.py', 'summarize.py', 'make_digits.py'])
def test_without_the_package_one_line_points_to_the_installation(name, tmp_path):
    result = run(sys.executable, '-S', '-I', str(REPOSITORY / 'tools' / name), folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count('\n') == 1
    assert 'install the missing package (see Install in README.md)' in result.stderr


def test_the_toolkits_script_reads_checkpoints_of_mmengine(tmp_path):
    """Upstream does not add HistoryBuffer to the allowed list of torch >= 2.6, and this config imports no mmws type."""
    torch.save({'message_hub': {'loss': HistoryBuffer([0.5], [1])}}, tmp_path / 'last.pth')
    (tmp_path / 'script.py').write_text("import torch; torch.load('last.pth', weights_only=True); print('resumed')")
    result = run(sys.executable, '-c', """
from pathlib import Path
from unittest.mock import patch
from mmws.cli.run_toolkit import run_script
with patch('mmws.cli.run_toolkit._check_run', return_value=Path('script.py')):
    run_script('train.py')
""", folder=tmp_path)
    assert result.stdout == 'resumed\n', result.stderr


@pytest.mark.parametrize('name', ['train', 'test'])
def test_distributed_scripts_find_the_toolkits(name, tmp_path):
    result = run(str(REPOSITORY / 'tools' / f'dist_{name}.sh'), COCO_CONFIG, COCO_CONFIG, '2', folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f'error: {COCO_CONFIG} needs data/coco/')


def test_default_scope_selects_the_toolkit():
    for toolkit, script in ((mmdet, 'train.py'), (mmseg, 'dist_test.sh')):
        path = toolkit_script_path(Config({'default_scope': toolkit.__name__}), script)
        assert path.is_relative_to(Path(toolkit.__file__).parent)
    with pytest.raises(WSError, match='no default_scope'):
        toolkit_script_path(Config({}), 'train.py')
    with pytest.raises(WSError, match=r'its tools/train\.py is not installed; the toolkits are mmdet, .* see Install'):
        toolkit_script_path(Config({'default_scope': 'mmnothing'}), 'train.py')

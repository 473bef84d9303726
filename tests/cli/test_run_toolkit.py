import sys
from argparse import ArgumentParser
from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.logging import HistoryBuffer

from mmws import WSError
from mmws.cli.run_toolkit import _cpu_wrapper
from mmws.cli.toolkit_script import toolkit_script_path
from mmws.ops.torch_compat import ALLOWS_NAMED_GLOBALS
from tests.helpers.commands import REPOSITORY, run, run_tool, tool, tool_error
from tests.helpers.versions import needs_torch

COCO_CONFIG = str(REPOSITORY / 'configs' / 'mask_rcnn_r50_gnws.py')
IMAGENET_CONFIG = str(REPOSITORY / 'configs' / 'resnet50_gnws_in1k.py')
SEGMENTATION_CONFIG = str(REPOSITORY / 'configs' / 'deeplabv3_r50_gnws_voc12aug.py')


@pytest.mark.parametrize(('name', 'arguments', 'message'), [
    ('train.py', ['configs/nope.py'], 'config configs/nope.py not found'),
    ('train.py', [f'{REPOSITORY}/configs/mask_rcnn_r50.py'], "did you mean 'mask_rcnn_r50_gnws.py'"),
    ('train.py', [COCO_CONFIG], 'needs data/coco/annotations/instances_train2017.json, which does not exist; get COCO'),
    ('train.py', [f'{REPOSITORY}/configs/demo/mask_rcnn_r18_gnws_digits.py'], 'run `python tools/make_digits.py`'),
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


@needs_torch('2.6', 'a list of allowed globals', ALLOWS_NAMED_GLOBALS)
def test_the_toolkits_script_reads_checkpoints_of_mmengine(tmp_path):
    """Upstream does not add HistoryBuffer to the allowed list of torch >= 2.6, and this config imports no mmws type."""
    torch.save({'message_hub': {'loss': HistoryBuffer([0.5], [1])}}, tmp_path / 'last.pth')
    (tmp_path / 'script.py').write_text("import torch; torch.load('last.pth', weights_only=True); print('resumed')")
    result = run(sys.executable, '-c', """
from argparse import Namespace
from pathlib import Path
from unittest.mock import patch
from mmws.cli.run_toolkit import run_script
with patch('mmws.cli.run_toolkit._check_run', return_value=(Path('script.py'), None, Namespace(launcher='none'))):
    run_script('train.py')
""", folder=tmp_path)
    assert result.stdout == 'resumed\n', result.stderr


@pytest.mark.parametrize(('arguments', 'message'), [
    (['train.py', '--work-dir', 'x', COCO_CONFIG], 'needs data/coco/'),
    (['train.py', '--amp', '--launcher=pytorch', COCO_CONFIG, '--auto-scale-lr'], 'needs data/coco/'),
    (['train.py', COCO_CONFIG, '--resume', 'nope.pth'], 'checkpoint nope.pth not found'),
    (['train.py', COCO_CONFIG, '--res'], 'needs data/coco/'),  # argparse accepts the start of an option
    (['train.py', '--no-validate', IMAGENET_CONFIG], 'needs data/imagenet/'),
    (['train.py', SEGMENTATION_CONFIG, '--resume'], 'needs data/VOCdevkit/'),
    (['test.py', COCO_CONFIG, '--work-dir', 'x', 'nope.pth'], 'checkpoint nope.pth not found'),
    (['test.py', '--out', 'results.json', '--show', COCO_CONFIG, 'nope.pth'], 'checkpoint nope.pth not found'),
    (['test.py', '--out', 'x', '--out-item', 'pred', IMAGENET_CONFIG, 'nope.pth'], 'checkpoint nope.pth not found'),
    (['train.py', 'nope'], 'config nope not found'),
])
def test_options_may_stand_where_the_toolkit_accepts_them(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in tool_error(*arguments)


@pytest.mark.parametrize(('arguments', 'code', 'message'), [
    (['train.py', '--help'], 0, 'Train a detector'),
    (['test.py', '-h'], 0, 'MMDet test (and eval) a model'),
    (['train.py', SEGMENTATION_CONFIG, '--help'], 0, 'Train a segmentor'),
    (['train.py', '--help', IMAGENET_CONFIG], 0, '--no-persistent-workers'),
    (['train.py'], 2, 'the following arguments are required: config'),
    (['test.py', COCO_CONFIG], 2, 'the following arguments are required: checkpoint'),
    (['train.py', '--work-dir', 'x'], 2, 'no config given; the options of mmdet are:'),
    (['train.py', COCO_CONFIG, '--no-validate'], 2, 'unrecognized arguments: --no-validate'),
    (['train.py', COCO_CONFIG, '--launcher=torchrun'], 2, "invalid choice: 'torchrun'"),
    (['train.py', '--cfg-options', 'a=1', COCO_CONFIG], 2, 'expected NAME=VALUE, got a=1 '),
])
def test_help_and_usage_errors_are_the_toolkits_own(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_tool(*arguments)
    printed = capsys.readouterr()
    assert ended.value.code == code
    assert message in (printed.err if code else printed.out)
    assert f'usage: {arguments[0]}' in (printed.err if code else printed.out)


@pytest.mark.parametrize(('arguments', 'code', 'message'), [
    (['train', COCO_CONFIG, '2', '--work-dir', 'x'], 1, f'error: {COCO_CONFIG} needs data/coco/'),
    (['test', COCO_CONFIG, COCO_CONFIG, '2'], 1, f'error: {COCO_CONFIG} needs data/coco/'),
    (['train', COCO_CONFIG], 1, 'error: expected tools/dist_train.sh CONFIG GPUS [OPTIONS], '),
    (['test', '--work-dir', 'x'], 1, 'error: expected tools/dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS], '),
    (['train', SEGMENTATION_CONFIG, '2', '--help'], 0, ''),
])
def test_distributed_scripts_find_the_toolkits(arguments, code, message, tmp_path):
    name, *arguments = arguments
    result = run(str(REPOSITORY / 'tools' / f'dist_{name}.sh'), *arguments, folder=tmp_path)
    assert result.returncode == code
    assert result.stderr.startswith(message)
    assert ('Train a segmentor' in result.stdout) == (code == 0)


@pytest.mark.parametrize(('config', 'expected'), [
    ({}, {'type': 'MMDistributedDataParallel', 'device_ids': None, 'broadcast_buffers': False,
          'find_unused_parameters': False}),
    ({'find_unused_parameters': True, 'model_wrapper_cfg': None},
     {'type': 'MMDistributedDataParallel', 'device_ids': None, 'broadcast_buffers': False,
      'find_unused_parameters': True}),
    ({'model_wrapper_cfg': {'static_graph': True}}, {'static_graph': True, 'device_ids': None}),
    ({'model_wrapper_cfg': {'type': 'MMSeparateDistributedDataParallel', 'broadcast_buffers': True}},
     {'type': 'MMSeparateDistributedDataParallel', 'broadcast_buffers': True, 'device_ids': None}),
    ({'model_wrapper_cfg': {'type': 'MMFullyShardedDataParallel', 'forward_prefetch': True}},
     {'type': 'MMFullyShardedDataParallel', 'forward_prefetch': True}),
])
def test_on_cpu_the_wrapper_of_the_config_is_kept(config, expected):
    config = Config(config)
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = parser.parse_args(_cpu_wrapper(config)).cfg_options
    config.merge_from_dict(options or {})
    assert config.model_wrapper_cfg == expected


def test_default_scope_selects_the_toolkit():
    for toolkit, script in ((mmdet, 'train.py'), (mmseg, 'dist_test.sh')):
        path = toolkit_script_path(Config({'default_scope': toolkit.__name__}), script)
        assert Path(toolkit.__file__).parent in path.parents
    with pytest.raises(WSError, match='no default_scope'):
        toolkit_script_path(Config({}), 'train.py')
    with pytest.raises(WSError, match=r'its tools/train\.py is not installed; the toolkits are mmdet, .* see Install'):
        toolkit_script_path(Config({'default_scope': 'mmnothing'}), 'train.py')

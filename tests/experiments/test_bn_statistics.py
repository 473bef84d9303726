from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from torch import nn

from mmws.experiments.bn_statistics import _BatchStatisticsHook, distances
from tests.helpers.commands import REPOSITORY, run_tool, tool_error

DETECTION = str(REPOSITORY / 'configs' / 'demo' / 'mask_rcnn_r18_gnws_digits.py')


@pytest.fixture
def options(digits, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    roots = [f'{split}_dataloader.dataset.data_root={digits}/' for split in ('train', 'val', 'test')]
    return ['--steps', '4', '--every', '2', '--cfg-options', 'train_dataloader.persistent_workers=False',
            'train_dataloader.num_workers=0', f'test_evaluator.ann_file={digits}/annotations/val.json', *roots]


def test_distances_of_a_batch():
    norm, x = nn.BatchNorm2d(3, eps=0), torch.randn(2, 3, 5, 7)
    norm.running_mean, norm.running_var = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 4.0, 0.25])
    shift, scale = distances(norm, x)
    for channel, (mean, std) in enumerate([(0, 1), (1, 2), (-1, 0.5)]):
        values = x[:, channel]
        assert shift[channel] == pytest.approx(abs(float(values.mean()) - mean) / std, rel=1e-4)
        assert 2 ** scale[channel] == pytest.approx(max(float(values.std(correction=0)) / std,
                                                        std / float(values.std(correction=0))), rel=1e-4)


def test_after_an_update_with_momentum_one_the_distances_are_zero():
    norm, x = nn.BatchNorm1d(3, momentum=1.0), torch.randn(5000, 3)
    norm(x)
    assert all(each.abs().max() < 1e-3 for each in distances(norm, x))


def test_the_tool_measures_a_training(options, capsys):
    run_tool('bn_statistics.py', DETECTION, '--out', 'out', *options, 'model.ws.norm=keep', 'model.ws.weight=plain')
    result = json.loads(Path('out/bn_statistics.json').read_text())
    points = result['measured']['mask_rcnn_r18_gnws_digits']
    assert [point['step'] for point in points] == [0, 2]
    assert all(0 < point[key] < point[f'{key}_high'] for point in points for key in ('shift', 'scale'))
    tested = result['tested']['mask_rcnn_r18_gnws_digits']
    assert list(tested) == ['running', 'batch']
    assert all(0 <= metric < 0.1 for metric in tested.values())  # after four steps
    layers = result['layers']['mask_rcnn_r18_gnws_digits']
    names = [layer['layer'] for layer in layers['running']]
    assert names[0] == 'backbone.bn1'
    assert names == [layer['layer'] for layer in layers['batch']]
    assert layers['running'][0] == layers['batch'][0]  # both tests give it the same input
    assert layers['running'][-1] != layers['batch'][-1]
    printed = capsys.readouterr().out
    for figure in ('out/bn_statistics.png', 'out/bn_layers.png'):
        assert cv2.imread(figure).std() > 5
        assert figure in printed


def test_a_network_without_batch_norm_is_refused(options):
    assert tool_error('bn_statistics.py', DETECTION, *options) == (
        'error: mask_rcnn_r18_gnws_digits: no BatchNorm ran in training mode; for a type with the mmws. prefix add '
        '--cfg-options model.ws.norm=keep model.ws.weight=plain')
    options[3] = '9'
    assert '--every: expected 1 to 4, the number of steps, got 9' in tool_error('bn_statistics.py', DETECTION, *options)


def test_two_configs_need_two_names(options):
    assert tool_error('bn_statistics.py', DETECTION, DETECTION, *options) == (
        "error: 2 configs are named 'mask_rcnn_r18_gnws_digits'; write NAME=CONFIG")


def test_a_test_with_the_statistics_of_the_batch_leaves_the_running_ones():
    norm, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5) * 2 + 1
    before = copy.deepcopy(norm.state_dict())
    _BatchStatisticsHook().before_test_iter(SimpleNamespace(model=nn.Sequential(norm.eval())), 0)
    output = norm(x)
    assert output.mean((0, 2, 3)).abs().max() < 1e-5
    assert all(torch.equal(norm.state_dict()[key], before[key]) for key in ('running_mean', 'running_var'))

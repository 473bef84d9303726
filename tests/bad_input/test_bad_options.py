"""Invalid options are refused in ``ws=dict(...)``, in ``convert_`` and in ``--ws``."""

import copy
import re

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmws import ConvWS2d, WSError, convert_, fold
from tests.helpers.commands import REPOSITORY, refusal, tool_error
from tests.helpers.versions import needs_torch

DETECTION = str(REPOSITORY / 'configs' / 'demo' / 'mask_rcnn_r18_gnws_digits.py')

VALUES = {
    'a negative number of groups': ({'num_groups': -1}, 'num_groups: expected a positive integer, got -1'),
    'half a group': ({'num_groups': 2.5}, r'num_groups: expected a positive integer, got 2\.5'),
    'groups as a string': ({'num_groups': '32'}, "num_groups: expected a positive integer, got '32'"),
    'groups as a list': ({'num_groups': [32]}, r'num_groups: expected a positive integer, got \[32\]'),
    'no groups': ({'num_groups': None}, 'num_groups: expected a positive integer, got None'),
    'an infinite eps': ({'eps': float('inf')}, 'eps: expected a finite number >= 0, got inf'),
    'a boolean eps': ({'eps': True}, 'eps: expected a finite number >= 0, got True'),
    'a complex eps': ({'eps': 1j}, 'eps: expected a finite number >= 0, got 1j'),
    'a tensor as eps': ({'eps': torch.tensor(1e-5)}, r'eps: expected a finite number >= 0, got tensor'),
    'a norm in lower case': ({'norm': 'gn'}, "norm: expected 'GN', .* got 'gn'"),
    'a list of norms': ({'norm': ['GN']}, r"norm: expected 'GN', .* got \['GN'\]"),
    'no norm': ({'norm': None}, "norm: expected 'GN', .* got None"),
    'a norm_cfg as norm': ({'norm': {'type': 'GN'}}, r"norm: expected 'GN', .* got \{'type': 'GN'\}"),
    'a tensor as norm': ({'norm': torch.ones(2)}, "norm: expected 'GN', .* got tensor"),
    'a boolean weight': ({'weight': True}, "weight: expected 'ws', .* got True"),
    'an unknown weight': ({'weight': 'WN'}, "weight: expected 'ws', .* got 'WN'"),
    'include as a string': ({'include': 'backbone.*'}, r"include: expected a list of globs .* got 'backbone\.\*'"),
    'include as a set': ({'include': {'0'}}, r"include: expected a list of globs .* got \{'0'\}"),
    'include without a match': ({'include': ['neck.*']}, r"include: 'neck\.\*' matches no convolution of Sequential"),
    'exclude of None': ({'exclude': [None]}, r'exclude: expected a list of globs .* got \[None\]'),
    'exclude as a mapping': ({'exclude': {'0': True}}, 'exclude: expected a list of globs'),
    'exclude without a match': ({'exclude': ['0', '']}, "exclude: '' matches no convolution of Sequential"),
    'a key in capitals': ({'Norm': 'GN'}, "unknown ws option 'Norm': did you mean 'norm'"),
    'an option of configs only': ({'pretrained': None}, "unknown ws option 'pretrained': expected one of"),
}


@pytest.mark.parametrize(('options', 'message'), VALUES.values(), ids=VALUES.keys())
def test_a_wrong_value_is_refused_and_the_network_does_not_change(options, message):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    before, weights = str(net), copy.deepcopy(net.state_dict())
    with pytest.raises(WSError, match=message):
        convert_(net, **options)
    assert str(net) == before
    torch.testing.assert_close(net.state_dict(), weights, rtol=0, atol=0)


CONFIGS = {
    'ws as a list': ({'ws': ['GN']}, r"ws in the config of mmws\.ResNet: expected a dict, got \['GN'\]"),
    'a boolean ws': ({'ws': True}, r'ws in the config of mmws\.ResNet: expected a dict, got True'),
    'a number as key': ({'ws': {1: 2}}, 'unknown ws option 1: expected one of'),
    'weights that are a number': ({'ws': {'pretrained': 3}}, 'pretrained: expected a path, a URL or None, got 3'),
    'missing weights': ({'ws': {'pretrained': 'no.pth'}}, r'pretrained: file no\.pth not found'),
    'weights that are a folder': ({'ws': {'pretrained': '.'}}, r'pretrained: file \. not found'),
    'weights of unknown name': ({'ws': {'pretrained': 'open-mmlab://jhu/resnet51_gn_ws'}},
                                'resnet51_gn_ws: did you mean'),
}


@pytest.mark.parametrize(('config', 'message'), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_wrong_option_in_a_config_is_refused(config, message, mmdet_scope):
    with pytest.raises(WSError, match=message):
        MODELS.build({'type': 'mmws.ResNet', 'depth': 18, **config})


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: convert_('ResNet'), r"convert_: expected a network \(nn\.Module\), got 'ResNet'"),
    (lambda: convert_(nn.Conv2d), r'convert_: expected a network \(nn\.Module\), got <class'),
    (lambda: convert_(nn.Sequential(torch.jit.script(net()))), r'0 is scripted or traced.*before torch\.jit'),
    (lambda: convert_(torch.jit.trace(net(), torch.zeros(1, 3, 8, 8))), 'the network is scripted or traced'),
    pytest.param(lambda: convert_(torch.export.export(net(), (torch.zeros(1, 3, 8, 8),)).module()),
                 'the network is exported', marks=needs_torch('2.1', 'torch.export.export')),
    (lambda: fold({'state_dict': {}}), r"fold: expected a network .* got dict with the keys 'state_dict'$"),
    (lambda: convert_(nn.Conv2d(3, 8, 3).state_dict()), r".* got OrderedDict with the keys 'weight', 'bias'$"),
    (lambda: ConvWS2d(3, 4, 3, eps=-1.0), r'eps: expected a finite number >= 0, got -1\.0'),
    (lambda: ConvWS2d(3, 4, 3, eps=None), 'eps: expected a finite number >= 0, got None'),
])
def test_a_wrong_argument_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings('ignore:nothing was standardized')
@pytest.mark.parametrize('net', [nn.Sequential(), nn.ModuleList(), nn.ReLU(), nn.Sequential(nn.LazyConv2d(4, 3))])
def test_a_network_without_convolutions_does_not_change(net):
    before = str(net)
    assert convert_(net).converted == []
    assert str(net) == before


@pytest.mark.parametrize(('options', 'message'), [
    (['norm=BM'], r"ws option norm: expected 'GN', .* got 'BM'"),
    (['nrom=GN'], "unknown ws option 'nrom': did you mean 'norm'"),
    (['exclude=neck.*'], r"ws option exclude: expected a list of globs such as \['neck\.\*'\], got 'neck\.\*'"),
    (['num_groups=many'], "ws option num_groups: expected a positive integer, got 'many'"),
    (['norm.type=GN'], "unknown ws option 'norm.type': did you mean 'norm'"),
])
def test_a_wrong_option_on_the_command_line_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, refusal('report.py', DETECTION, '--ws', *options, '--write', 'out.py'))


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--train', '-1'], 'train: expected a whole number from 0 to 1000000, got -1'),
    (['--val', '-3'], 'val: expected a whole number from 0 to 1000000, got -3'),
    (['--size', '8'], 'size: expected a whole number from 32 to 853, got 8'),
    (['--size', '4000'], 'size: expected a whole number from 32 to 853, got 4000'),
    (['--seed', '-1'], 'seed: expected a whole number from 0 to 4294967295, got -1'),
])
def test_wrong_sizes_of_the_digits_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal('make_digits.py', 'digits', *arguments) == message


@pytest.mark.parametrize(('arguments', 'message'), [
    (['sweep.py', 'out.csv', '--only', 'nothing of that name'], "no model has 'nothing of that name'"),
    (['sweep.py', 'out.csv', '--processes', '0'], '--processes: expected at least one, got 0'),
    (['sweep.py', 'out.txt'], r'out\.txt: expected a name that ends in \.csv'),
    (['sweep.py', 'no/out.csv'], 'no/out.csv: folder no not found'),
    (['benchmark.py', '--out', 'file'], 'file is not a folder; choose another --out'),
    (['benchmark.py', '--out', 'file/inner'], 'file is not a folder; choose another --out'),
    (['study.py', 'file'], 'file: expected a mapping with the keys tasks'),
    (['study.py', 'no.yaml'], r'study no\.yaml not found'),
    (['summarize.py', '.'], 'no .*scalars.json with training steps'),
])
def test_long_runs_refuse_a_mistake_before_they_start(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('text')
    assert re.search(message, refusal(*arguments))


def test_broken_files_in_a_work_folder_are_named(tmp_path):
    logs = tmp_path / '20260101' / 'vis_data'
    logs.mkdir(parents=True)
    (logs / 'scalars.json').write_text('{"step": 1, "loss": }\n')
    error = tool_error('summarize.py', str(tmp_path))
    assert 'scalars.json has a line that is not valid JSON: Expecting value' in error
    (logs / 'scalars.json').write_text('{"step": 1, "loss": 1.0, "time": 0.1}\n')
    (tmp_path / 'c.py').write_text("model = dict(type='MaskRCNN')\ntrain_dataloader = dict(batch_size=1)\n")
    (logs.parent / '20260101.json').write_text('{')
    assert '20260101.json is not valid JSON: Expecting property name' in tool_error('summarize.py', str(tmp_path))

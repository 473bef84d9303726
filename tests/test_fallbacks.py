"""The tests of the cache, the conversion and folding pass without the names that torch 2.0 lacks."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import mmws.cli.onnx_export
import mmws.ops.torch_compat
from mmws import WSError
from mmws.conversion.output_recorder import OutputRecorder
from tests.helpers.commands import REPOSITORY

WITHOUT_NEW_NAMES = [sys.executable, '-m', 'pytest', '-q', '-p', 'tests.helpers.old_torch', '-p', 'no:cacheprovider']


def test_without_new_names():
    files = [f'tests/{name}.py' for name in (
        'layers/test_weight_cache', 'layers/test_conv', 'layers/test_conv_transpose', 'layers/test_recompute',
        'conversion/test_convert', 'conversion/test_fold', 'conversion/test_parametrize_convs',
        'conversion/test_swap_convs', 'openmmlab/test_guard_hook')]
    run = subprocess.run([*WITHOUT_NEW_NAMES, *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]


def test_weight_normalization_is_refused_before_the_model_changes():
    code = ('import tests.helpers.old_torch, mmws; from torch import nn\n'
            'net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)); before = repr(net)\n'
            'try: mmws.convert_(net, weight="wn")\n'
            'except mmws.WSError as error: print(error, repr(net) == before)')
    run = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == f"ws option weight: 'wn' needs torch >= 2.1, this is {torch.__version__} True\n"


def test_the_export_says_which_torch_it_needs(monkeypatch):
    monkeypatch.setattr(mmws.cli.onnx_export, 'DYNAMIC', None)
    with pytest.raises(WSError, match=r'needs torch >= 2\.6, this is '):
        mmws.cli.onnx_export.export_onnx(nn.Conv2d(3, 8, 3))


def test_indexing_is_recorded_where_torch_hides_it(monkeypatch):
    """torch 2.0 hides it from a mode; here both see it, and the record is the same."""
    monkeypatch.setattr(mmws.ops.torch_compat, '_SEES_INDEXING', False)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    with OutputRecorder(net) as recorder:
        out = net[0](torch.zeros(1, 3, 4, 4))
        net[1](out)
        assert out[0, 1, 2, 3] == net[0].bias[1]
    assert recorder.consumers == {net[0]: [net[1], '__getitem__']}
    assert not {'__getitem__', '__setitem__'} & vars(torch.Tensor).keys()

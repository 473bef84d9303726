"""The tools refuse invalid checkpoints and outputs that they cannot write."""

import io
import os
import pickle
import re
import resource
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.helpers.checkpoints import COMMAND, safetensors, shapes_of, torch_zip
from tests.helpers.commands import refusal, run_tool, tool_error
from tests.helpers.models import DEMO, random_model

DETECTION = DEMO / 'mask_rcnn_r18_gnws_digits.py'
TOOL_OUTPUTS = {'test.py': [], 'fold_checkpoint.py': ['out'], 'export_onnx.py': ['out.onnx'],
          'publish_model.py': ['out.pth']}


@pytest.fixture(scope='module')
def weights():
    return random_model(Config.fromfile(DETECTION)).state_dict()


@pytest.fixture(autouse=True)
def folder(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('data').mkdir()
    Path('data/digits').symlink_to(digits)


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


STEM = 'conv1.weight'
FILES = {  # the contents are functions: all of them together take 3 GB
    'an empty file': ('pth', lambda: b'', 'it is empty'),
    'a web page': ('pth', lambda: b'<!DOCTYPE html><title>404</title>', 'it is a web page; repeat the download'),
    'a web page named .pkl': ('pkl', lambda: b'\n<html>', 'it is a web page'),
    'half a file': ('pth', lambda: saved({'a': torch.ones(999)})[:2000], 'File is not a zip file'),
    'a command': ('pth', lambda: torch_zip(COMMAND), 'system'),
    'a list': ('pth', lambda: saved([torch.ones(1)]), 'expected weights by name, got a list'),
    'a single tensor': ('pth', lambda: saved(torch.ones(1)), 'expected weights by name, got a Tensor'),
    'an optimizer only': ('pth', lambda: saved({'optimizer': {'state': {0: torch.ones(2)}}}),
                          'it contains no tensors by name'),
    'text instead of weights': ('pth', lambda: saved({STEM: 'x'}), 'it contains no tensors by name'),
    'weights two levels down': ('pth', lambda: saved({'state_dict': {'net': {STEM: torch.ones(1)}}}),
                                'no tensors by name'),
    'NaN values': ('pth', lambda: saved(shapes_of(**{STEM: torch.full((64, 3, 7, 7), float('nan'))})),
                   r'module\.conv1\.weight contains NaN values: the training diverged'),
    'complex numbers': ('pth', lambda: saved(shapes_of(**{STEM: torch.ones(64, 3, 7, 7).cfloat()})),
                        'contains complex numbers'),
    'integers': ('pth', lambda: saved(shapes_of(**{STEM: torch.ones(64, 3, 7, 7).int()})),
                      r'conv1\.weight has dtype torch\.int32, expected floating point numbers'),
    'numbers as names': ('pth', lambda: saved({0: torch.ones(1)}), 'unknown format; .* got the tensors 0'),
    'a number as a name': ('pth', lambda: saved({**shapes_of(), 7: torch.ones(1)}),
                           r'7 of shape \(1,\) does not belong to'),
    'a stem of one dimension': ('pth', lambda: saved(shapes_of(**{STEM: torch.ones(64)})),
                                r'conv1\.weight has shape \(64,\)'),
    'a truncated safetensors file': ('safetensors', lambda: safetensors({'a': {}})[:5], 'cannot use x.safetensors: '),
    'a torch file named .safetensors': ('safetensors', lambda: saved({'a': torch.ones(1)}),
                                        'cannot use x.safetensors: '),
    'a pickle of text': ('pkl', lambda: pickle.dumps('weights'), 'expected weights by name, got a str'),
}


@pytest.mark.parametrize(('ending', 'content', 'message'), FILES.values(), ids=FILES.keys())
def test_a_file_without_valid_weights_is_refused(ending, content, message):
    Path(f'x.{ending}').write_bytes(content())
    assert re.search(message, refusal('convert_checkpoint.py', f'x.{ending}', 'out.pth'))


@pytest.mark.parametrize('name', ['convert_checkpoint.py', *TOOL_OUTPUTS])
def test_a_folder_is_refused_as_checkpoint(name):
    Path('x.pth').mkdir()
    arguments = ['x.pth', 'out.pth'] if name not in TOOL_OUTPUTS else [str(DETECTION), 'x.pth', *TOOL_OUTPUTS[name]]
    assert refusal(name, *arguments) == 'x.pth is a folder, expected a checkpoint file'


def changed(weights, rename=lambda key: key, drop='nothing', **tensors):
    return {rename(key): tensor for key, tensor in {**weights, **tensors}.items() if drop not in key}


MODELS = {
    'of BatchNorm': ('test.py', lambda base: changed(base, lambda key: key.replace('gn', 'bn')),
                     'does not fit .*: it has no weights for 62 parameters of the model, such as backbone.gn1.weight'),
    'of a shallower network': ('test.py', lambda base: changed(base, drop='layer4'), 'no weights for 15 parameters'),
    'of other shapes': ('test.py', lambda base: {**base, 'backbone.conv1.weight': torch.ones(3, 3)},
                        r'size mismatch for backbone\.conv1\.weight'),
    'of NaN values': ('test.py', lambda base: {**base, 'backbone.gn1.bias': torch.full((32,), float('nan'))},
                      'contains NaN values'),
    'of the optimizer': ('test.py', lambda base: {'optimizer': {'state': {}}}, 'it contains no tensors by name'),
    'of a command': ('test.py', lambda base: COMMAND, r'cannot use x\.pth \(nothing in it was executed\): .*system'),
    'to train on, of text': ('train.py', lambda base: {'a': 'x'}, 'it contains no tensors by name'),
    'to fold, of NaN values': ('fold_checkpoint.py', lambda base: {**base, 'backbone.gn1.bias': torch.full((32,), float(
        'nan'))}, r'backbone\.gn1\.bias contains NaN values'),
    'to fold, one too many': ('fold_checkpoint.py', lambda base: {**base, 'a.weight': torch.ones(1)}, 'Unexpected key'),
    'to export, of other shapes': ('export_onnx.py', lambda base: {
        **base, 'neck.lateral_convs.0.conv.weight': torch.ones(2)}, r'size mismatch for neck\.lateral_convs\.0\.conv'),
    'to publish, without a state_dict': ('publish_model.py', lambda base: base, r'x\.pth has no state_dict, which'),
    'to publish, complex': ('publish_model.py', lambda base: {'state_dict': changed(base, **{
        'backbone.gn1.bias': base['backbone.gn1.bias'].cfloat()})}, 'contains complex numbers'),
}


@pytest.mark.parametrize(('name', 'change', 'message'), MODELS.values(), ids=MODELS.keys())
def test_weights_that_do_not_fit_are_refused(name, change, message, weights):
    torch.save(change(weights), 'x.pth')
    given = ['--cfg-options', 'load_from=x.pth'] if name == 'train.py' else ['x.pth', *TOOL_OUTPUTS[name]]
    assert re.search(message, refusal(name, str(DETECTION), *given))


def test_unknown_meta_data_are_ignored(weights):
    for meta in ([1], 'x', {1: 2}, {'dataset_meta': torch.ones(1)}):
        torch.save({'state_dict': weights, 'meta': meta, 7: 8}, 'x.pth')
        run_tool('convert_checkpoint.py', 'x.pth', 'out.pth')
    assert 'cannot write the meta data to .safetensors' in refusal('convert_checkpoint.py', 'x.pth', 'out.safetensors')


OUTPUTS = {
    'the input': (['convert_checkpoint.py', 'x.pth', 'x.pth'],
                  'output would overwrite its input x.pth; choose another name'),
    'a link to it': (['convert_checkpoint.py', 'x.pth', 'link.pth'], 'output would overwrite its input link.pth'),
    'a folder': (['convert_checkpoint.py', 'x.pth', 'folder.pth'], 'folder.pth is a folder, expected a file name'),
    'a path inside a file': (['convert_checkpoint.py', 'x.pth', 'x.pth/out.pth'], 'folder x.pth not found'),
    'no suffix': (['convert_checkpoint.py', 'x.pth', 'out'], 'expected a name that ends in .pth or .safetensors'),
    'the weights to fold': (['fold_checkpoint.py', 'c.py', 'x.pth', 'x'], 'output would overwrite its input x.pth'),
    'the config to fold': (['fold_checkpoint.py', 'c.py', 'x.pth', 'c'], 'output would overwrite its input c.py'),
    'a missing folder to fold to': (['fold_checkpoint.py', 'c.py', 'x.pth', 'no/out'], 'folder no not found'),
    'the weights to export': (['export_onnx.py', 'c.py', 'x.pth', 'x.pth'], 'expected a name that ends in .onnx'),
    'a missing folder to export to': (['export_onnx.py', 'c.py', 'x.pth', 'no/x.onnx'], 'folder no not found'),
    'the weights to publish': (['publish_model.py', 'c.py', 'x.pth', 'x.pth'],
                               'output would overwrite its input x.pth'),
    'an existing config': (['report.py', 'c.py', '--write', 'c.py'], 'c.py already exists; choose another name'),
    'a config in a missing folder': (['report.py', 'c.py', '--write', 'no/c.py'], 'No such file or directory'),
}


@pytest.mark.parametrize(('command', 'message'), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_an_invalid_output_path_is_refused(command, message):
    Path('c.py').write_text(f"_base_ = '{DETECTION}'\n")
    torch.save(shapes_of(), 'x.pth')
    Path('link.pth').symlink_to('x.pth')
    Path('folder.pth').mkdir()
    assert message in refusal(*command)


@pytest.fixture
def full_disk():
    """Limit the size of a file to one MiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('command', [
    ['convert_checkpoint.py', 'x.pth', 'out.pth'], ['convert_checkpoint.py', 'x.pth', 'out.safetensors'],
    ['fold_checkpoint.py', 'c.py', 'x.pth', 'out'],
    ['publish_model.py', 'c.py', 'x.pth', 'out.pth']], ids=' '.join)
def test_a_full_disk_keeps_the_old_files(command, weights, request):
    Path('c.py').write_text(f"_base_ = '{DETECTION}'\n")
    torch.save({'state_dict': weights, 'meta': {}}, 'x.pth')
    for name in ('out.pth', 'out.safetensors', 'out.py', 'out.onnx'):
        Path(name).write_text('the old one')
    request.getfixturevalue('full_disk')
    assert re.search('is the disk full|File too large|larger', refusal(*command))


@pytest.fixture
def unprivileged():
    """Run as the user `nobody`, because root may write everywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.parametrize(('command', 'message'), [
    (['convert_checkpoint.py', 'secret.pth', 'out.pth'], "Permission denied: 'secret.pth'"),
    (['convert_checkpoint.py', 'x.pth', 'locked/out.pth'], 'Permission denied|cannot write'),
    (['benchmark.py', '--out', 'locked/inner'], 'no permission to write to .*locked; choose another --out'),
])
def test_missing_permissions_give_one_line(command, message, tmp_path, request):
    torch.save(shapes_of(), 'x.pth')
    torch.save(shapes_of(), 'secret.pth')
    Path('secret.pth').chmod(0)
    Path('locked').mkdir(mode=0o555)
    for path in (tmp_path, *list(tmp_path.parents)[:3]):  # only the user can enter pytest's folders
        path.chmod(path.stat().st_mode | 0o055)
    request.getfixturevalue('unprivileged')
    assert re.search(message, tool_error(*command))

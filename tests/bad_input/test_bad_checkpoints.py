"""Checkpoints that cannot be meant, and places where nothing can be written, through the commands that take them."""

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
TAKERS = {'test.py': [], 'fold_checkpoint.py': ['out'], 'export_onnx.py': ['out.onnx'],
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
    whole = io.BytesIO()
    torch.save(content, whole)
    return whole.getvalue()


STEM = 'conv1.weight'
FILES = {
    'an empty file': ('pth', b'', 'it is empty'),
    'a web page': ('pth', b'<!DOCTYPE html><title>404</title>', 'it is a web page, as a download that failed'),
    'a page under the name of a pickle': ('pkl', b'\n<html>', 'it is a web page'),
    'half a file': ('pth', saved({'a': torch.ones(999)})[:2000], 'File is not a zip file'),
    'a command': ('pth', torch_zip(COMMAND), 'system'),
    'a list': ('pth', saved([torch.ones(1)]), 'it holds a list, where weights by name are expected'),
    'a tensor alone': ('pth', saved(torch.ones(1)), 'it holds a Tensor, where weights by name'),
    'an optimizer alone': ('pth', saved({'optimizer': {'state': {0: torch.ones(2)}}}), 'it holds no tensors by name'),
    'text for weights': ('pth', saved({STEM: 'x'}), 'it holds no tensors by name'),
    'weights two levels down': ('pth', saved({'state_dict': {'net': {STEM: torch.ones(1)}}}), 'no tensors by name'),
    'no numbers': ('pth', saved(shapes_of(**{STEM: torch.full((64, 3, 7, 7), float('nan'))})),
                   r'module\.conv1\.weight holds numbers that are none \(NaN\): the training .* diverged'),
    'complex numbers': ('pth', saved(shapes_of(**{STEM: torch.ones(64, 3, 7, 7).cfloat()})), 'holds complex numbers'),
    'whole numbers': ('pth', saved(shapes_of(**{STEM: torch.ones(64, 3, 7, 7).int()})),
                      r'conv1\.weight is of torch\.int32, where weights are floating point numbers'),
    'numbers for names': ('pth', saved({0: torch.ones(1)}), 'of no known format; .* its tensors are 0'),
    'a number among the names': ('pth', saved(shapes_of() | {7: torch.ones(1)}), r'7 of shape \(1,\) has no place'),
    'a stem of one dimension': ('pth', saved(shapes_of(**{STEM: torch.ones(64)})), r'conv1\.weight has shape \(64,\)'),
    'a file of safetensors cut off': ('safetensors', safetensors({'a': {}})[:5], 'x.safetensors is refused'),
    'torch under the name of safetensors': ('safetensors', saved({'a': torch.ones(1)}), 'x.safetensors is refused'),
    'a pickle of text': ('pkl', pickle.dumps('weights'), 'it holds a str, where weights by name are expected'),
}


@pytest.mark.parametrize(('ending', 'content', 'message'), FILES.values(), ids=FILES.keys())
def test_a_file_that_holds_no_weights_is_refused(ending, content, message):
    Path(f'x.{ending}').write_bytes(content)
    assert re.search(message, refusal('convert_checkpoint.py', f'x.{ending}', 'out.pth'))


@pytest.mark.parametrize('name', ['convert_checkpoint.py', *TAKERS])
def test_a_folder_is_no_checkpoint(name):
    Path('x.pth').mkdir()
    arguments = ['x.pth', 'out.pth'] if name not in TAKERS else [str(DETECTION), 'x.pth', *TAKERS[name]]
    assert refusal(name, *arguments) == 'x.pth is a folder, where a checkpoint is expected'


def changed(weights, rename=lambda key: key, drop='nothing', **tensors):
    return {rename(key): tensor for key, tensor in (weights | tensors).items() if drop not in key}


MODELS = {
    'of BatchNorm': ('test.py', lambda own: changed(own, lambda key: key.replace('gn', 'bn')),
                     'does not fit .*: it has no weights for 62 parameters of the model, such as backbone.gn1.weight'),
    'of a shallower network': ('test.py', lambda own: changed(own, drop='layer4'), 'no weights for 15 parameters'),
    'of other shapes': ('test.py', lambda own: own | {'backbone.conv1.weight': torch.ones(3, 3)},
                        r'size mismatch for backbone\.conv1\.weight'),
    'of no numbers': ('test.py', lambda own: own | {'backbone.gn1.bias': torch.full((32,), float('nan'))}, r'\(NaN\)'),
    'of the optimizer': ('test.py', lambda own: {'optimizer': {'state': {}}}, 'it holds no tensors by name'),
    'of nothing that is read': ('test.py', lambda own: COMMAND, 'refused, nothing in it was executed: .*system'),
    'to train on, of text': ('train.py', lambda own: {'a': 'x'}, 'it holds no tensors by name'),
    'to fold, of no numbers': ('fold_checkpoint.py', lambda own: own | {'backbone.gn1.bias': torch.full((32,), float(
        'nan'))}, r'backbone\.gn1\.bias holds numbers that are none'),
    'to fold, of too many': ('fold_checkpoint.py', lambda own: own | {'a.weight': torch.ones(1)}, 'Unexpected key'),
    'to export, of other shapes': ('export_onnx.py', lambda own: own | {'neck.lateral_convs.0.conv.weight': torch.ones(
        2)}, r'size mismatch for neck\.lateral_convs\.0\.conv\.weight'),
    'to publish, without a state_dict': ('publish_model.py', lambda own: own, r'x\.pth has no state_dict, which'),
    'to publish, complex': ('publish_model.py', lambda own: {'state_dict': changed(own, **{
        'backbone.gn1.bias': own['backbone.gn1.bias'].cfloat()})}, 'holds complex numbers'),
}


@pytest.mark.parametrize(('name', 'change', 'message'), MODELS.values(), ids=MODELS.keys())
def test_weights_that_do_not_fit_are_refused(name, change, message, weights):
    torch.save(change(weights), 'x.pth')
    given = ['--cfg-options', 'load_from=x.pth'] if name == 'train.py' else ['x.pth', *TAKERS[name]]
    assert re.search(message, refusal(name, str(DETECTION), *given))


def test_the_meta_data_of_a_stranger_do_not_matter(weights):
    for meta in ([1], 'x', {1: 2}, {'dataset_meta': torch.ones(1)}):
        torch.save({'state_dict': weights, 'meta': meta, 7: 8}, 'x.pth')
        run_tool('convert_checkpoint.py', 'x.pth', 'out.pth')
    assert 'meta data cannot be written to .safetensors' in refusal('convert_checkpoint.py', 'x.pth', 'out.safetensors')


OUTPUTS = {
    'what is read': (['convert_checkpoint.py', 'x.pth', 'x.pth'], 'x.pth is what it is to be made of and would be'),
    'a link to it': (['convert_checkpoint.py', 'x.pth', 'link.pth'], 'link.pth is what it is to be made of'),
    'a folder': (['convert_checkpoint.py', 'x.pth', 'folder.pth'], 'folder.pth is a folder; give the name of a file'),
    'a file in a file': (['convert_checkpoint.py', 'x.pth', 'x.pth/out.pth'], 'there is no folder x.pth'),
    'no ending': (['convert_checkpoint.py', 'x.pth', 'out'], 'expected a name that ends in .pth or .safetensors'),
    'the weights to fold': (['fold_checkpoint.py', 'c.py', 'x.pth', 'x'], 'x.pth is what it is to be made of'),
    'the config to fold': (['fold_checkpoint.py', 'c.py', 'x.pth', 'c'], 'c.py is what it is to be made of'),
    'no such folder to fold to': (['fold_checkpoint.py', 'c.py', 'x.pth', 'no/out'], 'there is no folder no'),
    'the weights to export': (['export_onnx.py', 'c.py', 'x.pth', 'x.pth'], 'expected a name that ends in .onnx'),
    'no such folder to export to': (['export_onnx.py', 'c.py', 'x.pth', 'no/x.onnx'], 'there is no folder no'),
    'the weights to publish': (['publish_model.py', 'c.py', 'x.pth', 'x.pth'], 'x.pth is what it is to be made of'),
    'a config that is there': (['report.py', 'c.py', '--write', 'c.py'], 'c.py is there already; it was left as it is'),
    'a config in no folder': (['report.py', 'c.py', '--write', 'no/c.py'], 'No such file or directory'),
}


@pytest.mark.parametrize(('command', 'message'), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_a_place_that_cannot_be_written_to_is_refused(command, message):
    Path('c.py').write_text(f"_base_ = '{DETECTION}'\n")
    torch.save(shapes_of(), 'x.pth')
    Path('link.pth').symlink_to('x.pth')
    Path('folder.pth').mkdir()
    assert message in refusal(*command)


@pytest.fixture
def full_disk():
    """Files can grow to a megabyte, and then no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('command', [
    ['convert_checkpoint.py', 'x.pth', 'out.pth'], ['convert_checkpoint.py', 'x.pth', 'out.safetensors'],
    ['fold_checkpoint.py', 'c.py', 'x.pth', 'out'],
    ['publish_model.py', 'c.py', 'x.pth', 'out.pth']], ids=' '.join)
def test_a_disk_that_fills_up_leaves_what_was_there(command, weights, request):
    Path('c.py').write_text(f"_base_ = '{DETECTION}'\n")
    torch.save({'state_dict': weights, 'meta': {}}, 'x.pth')
    for name in ('out.pth', 'out.safetensors', 'out.py', 'out.onnx'):
        Path(name).write_text('the old one')
    request.getfixturevalue('full_disk')
    assert re.search('is the disk full|File too large|larger', refusal(*command))


@pytest.fixture
def unprivileged():
    """Root may do anything: be nobody for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.parametrize(('command', 'message'), [
    (['convert_checkpoint.py', 'secret.pth', 'out.pth'], "Permission denied: 'secret.pth'"),
    (['convert_checkpoint.py', 'x.pth', 'locked/out.pth'], 'Permission denied|could not be written'),
    (['benchmark.py', '--out', 'locked/inner'], 'nothing can be written to .*locked; give another --out'),
])
def test_without_permission_nothing_happens(command, message, tmp_path, request):
    torch.save(shapes_of(), 'x.pth')
    torch.save(shapes_of(), 'secret.pth')
    Path('secret.pth').chmod(0)
    Path('locked').mkdir(mode=0o555)
    for path in (tmp_path, *tmp_path.parents[:3]):  # pytest's folders are its user's alone
        path.chmod(path.stat().st_mode | 0o055)
    request.getfixturevalue('unprivileged')
    assert re.search(message, tool_error(*command))

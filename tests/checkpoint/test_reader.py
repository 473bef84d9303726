"""Hostile files: the reader refuses them with one line and executes nothing."""

import io
import pickle
import pickletools
import re
import struct
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmws import WSError
from mmws.checkpoint import read_checkpoint, reader
from mmws.openmmlab.safe_globals import allow_log_history
from tests.helpers.checkpoints import COMMAND, Calls, safetensors, torch_zip
from tests.helpers.commands import tool_error


def named(module, name, argument=b'I0\n'):
    """Return a pickle that calls ``module.name`` with one argument."""
    return b'c' + f'{module}\n{name}\n'.encode() + b'(' + argument + b'tR.'


def overlapping_zip():
    """Return a zip file whose central directory lists one entry twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        archive.writestr('x/data.pkl', bytes(10**5))
        archive.filelist.append(archive.filelist[0])
    return out.getvalue()


def legacy(tensors):
    out = io.BytesIO()
    torch.save(tensors, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


ONES = {'a': torch.ones(4)}
ARRAY = {'a': np.ones(4, 'f4')}
SHAPE = b'K\x04\x85'  # (4,)
HUGE = b'\x8a\x06' + (2**40).to_bytes(6, 'little') + b'\x85'
F32 = {'dtype': 'F32', 'shape': [4]}

HOSTILE = {
    'a command, torch': ('pth', torch_zip(COMMAND), 'system'),
    'a command, torch legacy': ('pth', legacy(COMMAND), 'system'),
    'a command, pickle': ('pkl', pickle.dumps(COMMAND, 2), r'\.system is not allowed'),
    'a command, protocol 4': ('pkl', pickle.dumps(COMMAND, 4), 'is not allowed; only numpy'),
    'eval': ('pkl', named('builtins', 'eval', b'Vopen("executed","w")\n'), r'builtins\.eval is not allowed'),
    'a function of torch': ('pth', torch_zip({'a': Calls(torch.load, 'x')}), r'torch\.serialization\.load'),
    'a function of numpy': ('pkl', named('numpy', 'fromfile', b'Vx\n'), r'numpy\.fromfile is not allowed'),
    'a function of numpy.core': ('pkl', named('numpy.core.multiarray', 'fromstring'), 'fromstring is not allowed'),
    'a dotted name': ('pkl', named('numpy', 'ndarray.tofile'), r'numpy\.ndarray\.tofile is not allowed'),
    'a huge ndarray': ('pkl', named('numpy', 'ndarray', b'I99999999999\n'), 'numpy does not pickle an array'),
    'an array of objects': ('pkl', pickle.dumps({'a': np.array([None])}, 2), 'expected arrays of numbers'),
    'bytes in another encoding': ('pkl', named('_codecs', 'encode', b'Vx\nVrot13\n'), "text encoding 'rot13'"),
    'a huge array': ('pkl', pickle.dumps(ARRAY, 2).replace(SHAPE, HUGE), r'\(1099511627776,\) but has 16 bytes'),
    'a huge tensor': ('pth', torch_zip(ONES, (SHAPE, HUGE)), 'cannot use'),
    'a huge tensor of one number': ('pth', torch_zip({'a': torch.ones(1).expand(2**40)}), '1099511627776,'),
    'a sparse tensor, of any size': ('pth', torch_zip({'a': torch.eye(2).to_sparse()}), 'not a dense|_rebuild_sparse'),
    'a tensor without data': ('pth', torch_zip({'a': torch.empty(2**40, device='meta')}), 'not a dense|_rebuild_meta'),
    'a huge legacy storage': ('pth', legacy(ONES).replace(b'K\x04N', HUGE[:-1] + b'N'), 'cannot use'),
    'a huge memo index': ('pkl', b'\x80\x02}r\xff\xff\xff\x7f.', 'it contains no tensors'),
    'a huge text': ('pkl', b'\x80\x02X\xff\xff\xff\x7fabc.', 'cannot use'),
    'a zip bomb': ('pth', torch_zip({'a': torch.zeros(10**6)}, compress=8), r'more than its size \(archive'),
    'overlapping entries': ('pth', overlapping_zip(), r'more than its size \(entries overlap\)'),
    'big-endian, torch': ('pth', torch_zip(ONES, byteorder=b'big'), 'big-endian'),
    'big-endian, pickle': ('pkl', pickle.dumps({'a': np.ones(4, '>f4')}, 2), 'big-endian'),
    'overlapping offsets': ('safetensors', safetensors(
        {'a': {**F32, 'data_offsets': [0, 16]}, 'b': {**F32, 'data_offsets': [8, 24]}}), 'cannot use'),
    'offsets beyond the end': ('safetensors', safetensors({'a': {**F32, 'data_offsets': [0, 2**40]}}), 'cannot use'),
    'a huge header': ('safetensors', struct.pack('<Q', 2**60) + b'{}', 'cannot use'),
    'a swapped header': ('safetensors', struct.pack('>Q', 2) + b'{}', 'cannot use'),
    'meta that is not JSON': ('safetensors', safetensors({'__metadata__': {'meta': 'x'}}, b''), 'cannot use'),
    'truncated zip': ('pth', torch_zip(ONES)[:-200], 'cannot use'),
    'truncated legacy': ('pth', legacy(ONES)[:-8], 'cannot use'),
    'truncated pickle': ('pkl', pickle.dumps(ARRAY, 2)[:-20], 'cannot use'),
    'truncated within a number': ('pkl', b'\x80\x02}J\x01', 'cannot use'),
    'truncated safetensors': ('safetensors', safetensors({'a': {**F32, 'data_offsets': [0, 16]}}, bytes(8)),
                              'cannot use'),
    'empty': ('pth', b'', 'cannot use'),
    'a web page': ('pth', b'<html>404</html>', 'cannot use'),
    'not a dict': ('pkl', pickle.dumps([1], 2), 'got a list'),
    'deeply nested': ('pkl', b'(' * 10**5 + b't' * 10**5 + b'.', 'cannot use'),
}

if reader.ALLOWS_NAMED_GLOBALS:  # torch < 2.6 ignores the size that the file claims
    HOSTILE['a huge storage'] = (
        'pth', torch_zip(ONES, (b'K\x04t', HUGE[:-1] + b't')), 'does not match expected size')

CODE = 'system|not allowed|serialization'  # in the messages about code


@pytest.fixture(params=['restricted', *['weights_only'] * reader.ALLOWS_NAMED_GLOBALS])
def torch_reader(request, monkeypatch):
    """Read torch's files as a torch < 2.6 does, or as a newer one."""
    monkeypatch.setattr(reader, 'ALLOWS_NAMED_GLOBALS', request.param == 'weights_only')


@pytest.mark.usefixtures('torch_reader')
@pytest.mark.parametrize(('ending', 'content', 'message'), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused(ending, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f'x.{ending}'
    path.write_bytes(content)
    with pytest.raises(WSError, match=message) as error:
        read_checkpoint(path)
    assert '\n' not in str(error.value)
    assert ('(nothing in it was executed)' in str(error.value)) == (re.search(CODE, str(error.value)) is not None)
    assert list(tmp_path.iterdir()) == [path]


def test_unsafe_loading_executes_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.load(io.BytesIO(HOSTILE['a command, torch'][1]), weights_only=False)
    assert (tmp_path / 'executed').exists()


@pytest.mark.parametrize('name', ['a command, torch', 'a command, pickle', 'truncated zip', 'a zip bomb'])
def test_the_tool_refuses_with_one_line_and_writes_nothing(name, tmp_path, monkeypatch):
    ending, content, _ = HOSTILE[name]
    (tmp_path / f'x.{ending}').write_bytes(content)
    (tmp_path / 'out.pth').write_text('the old one')
    monkeypatch.chdir(tmp_path)
    error = tool_error('convert_checkpoint.py', f'x.{ending}', 'out.pth')
    note = ' (nothing in it was executed)' if 'command' in name else ''
    assert error.startswith(f'error: cannot use x.{ending}{note}: ')
    assert (tmp_path / 'out.pth').read_text() == 'the old one'
    assert len(list(tmp_path.iterdir())) == 2


def test_a_nested_dict_of_exponential_size_is_fast(tmp_path):
    nest = {'a': np.ones(1)}
    for _ in range(100):
        nest = {'x': nest, 'y': nest}
    (tmp_path / 'x.pkl').write_bytes(pickletools.optimize(pickle.dumps(nest, 2)))
    with pytest.raises(WSError, match='contains no tensors'):
        read_checkpoint(tmp_path / 'x.pkl')


@pytest.mark.parametrize('order', ['C', 'F'])
@pytest.mark.parametrize('dtype', ['f4', 'f8', 'i8'])
def test_arrays_keep_their_values(dtype, order, tmp_path):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype, order=order)
    for protocol in range(5):
        (tmp_path / 'x.pkl').write_bytes(pickle.dumps({'blobs': {'a': array}}, protocol))
        tensor = read_checkpoint(tmp_path / 'x.pkl').tensors['a']
        assert torch.equal(tensor, torch.from_numpy(array.copy()))


def trained():
    """Return a checkpoint of mmengine, with a log history."""
    history = HistoryBuffer()
    history.update(1.5)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half()
    return {'meta': {'epoch': 1, 'dataset_meta': {'classes': ('a', 'b')}}, 'state_dict': net.state_dict(),
            'message_hub': {'log_scalars': OrderedDict(loss=history)},
            'optimizer': torch.optim.SGD(net.parameters(), 0.1).state_dict(),
            'more': [torch.float16, torch.Size([2]), nn.Parameter(torch.ones(2))]}


@pytest.mark.usefixtures('torch_reader')
def test_a_checkpoint_of_mmengine(tmp_path):
    allow_log_history()
    content = {**trained(), 'param_schedulers': [{'milestones': Counter([8, 11])}]}
    torch.save(content, tmp_path / 'x.pth')
    checkpoint = read_checkpoint(tmp_path / 'x.pth')
    torch.testing.assert_close(checkpoint.tensors, dict(content['state_dict']))
    assert checkpoint.meta == content['meta']
    assert checkpoint.rest['optimizer'] == content['optimizer']
    assert checkpoint.rest['more'][:2] == content['more'][:2]
    assert checkpoint.rest['param_schedulers'] == content['param_schedulers']


@pytest.mark.parametrize(('module', 'name', 'argument'), [
    ('os', 'system', 'touch executed'), ('torch', 'load', 'x'), ('torch.serialization', 'load', 'x'),
    ('builtins', 'eval', 'open("executed", "w")'), ('torch._utils', '_rebuild_device_tensor_from_numpy', 'x'),
    ('torch', 'compile', 'x'), ('numpy', 'fromfile', 'x'), ('mmengine.logging', 'MMLogger', 'x')])
def test_the_restricted_unpickler_calls_nothing_else(module, name, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reader, 'ALLOWS_NAMED_GLOBALS', False)
    call = b'c' + f'{module}\n{name}\n(V{argument}\n'.encode() + b'tR'
    (tmp_path / 'x.pth').write_bytes(torch_zip({'a': torch.ones(4), 'b': 'here'}, (b'X\x04\x00\x00\x00here', call)))
    with pytest.raises(WSError, match=re.escape(f'{module}.{name} is not allowed')):
        read_checkpoint(tmp_path / 'x.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


def test_the_restricted_unpickler_sets_no_attribute_of_a_function(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, 'ALLOWS_NAMED_GLOBALS', False)
    state = b'ctorch._utils\n_rebuild_tensor_v2\n(N}V__defaults__\nNstb'  # a function, its state
    (tmp_path / 'x.pth').write_bytes(torch_zip({'a': torch.ones(4), 'b': 'here'}, (b'X\x04\x00\x00\x00here', state)))
    with pytest.raises(WSError, match='the state of a function is not allowed'):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_history_elsewhere_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, 'ALLOWS_NAMED_GLOBALS', False)
    torch.save({'state_dict': ONES, 'meta': {'history': HistoryBuffer()}}, tmp_path / 'x.pth')
    checkpoint = read_checkpoint(tmp_path / 'x.pth')
    with pytest.raises(pickle.PicklingError, match='was not read'):
        torch.save(checkpoint.meta, tmp_path / 'y.pth')

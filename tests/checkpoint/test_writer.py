import pytest
import torch

from mmws.checkpoint import read_checkpoint, write_checkpoint
from mmws.checkpoint import writer as module


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
def test_a_written_checkpoint_reads_back(ending, tmp_path):
    weight = torch.randn(4, 3)
    tensors = {'a': weight, 'shared': weight, 'turned': weight.T, 'half': weight.half()}
    write_checkpoint(tmp_path / f'x.{ending}', tensors, {'mmws': {'eps': 1e-5}})
    checkpoint = read_checkpoint(tmp_path / f'x.{ending}')
    assert checkpoint.rest == {'meta': {'mmws': {'eps': 1e-5}}}
    assert all(torch.equal(value, checkpoint.tensors[key]) for key, value in tensors.items())


@pytest.mark.parametrize(('ending', 'saver'), [('pth', 'torch.save'), ('safetensors', 'save_file')])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(ending, saver, tmp_path, monkeypatch):
    def fail(_, path, *__):
        path.write_bytes(b'half')
        raise OSError('no space left on device')

    def fail_torch(_, path):
        fail(_, path)

    owner, name = (module.torch, 'save') if saver == 'torch.save' else (module, 'save_file')
    monkeypatch.setattr(owner, name, fail_torch if ending == 'pth' else fail)
    (tmp_path / f'x.{ending}').write_text('the old one')
    with pytest.raises(OSError, match='no space'):
        write_checkpoint(tmp_path / f'x.{ending}', {'a': torch.ones(1)}, {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ['the old one']

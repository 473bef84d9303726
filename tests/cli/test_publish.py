import hashlib
import json
import pickle
import re
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmws import __version__
from mmws.cli.publish import publish_model
from mmws.ops.torch_compat import ALLOWS_NAMED_GLOBALS
from tests.helpers.commands import run_tool, tool_error
from tests.helpers.models import DEMO, random_model
from tests.helpers.versions import needs_torch

CONFIG = DEMO / 'mask_rcnn_r18_gnws_digits.py'


@pytest.mark.parametrize('measured', [True, False])
def test_publishing_removes_the_optimizer_and_adds_hash_and_card(measured, tmp_path, capfd):
    model = random_model(mmengine.Config.fromfile(CONFIG))
    meta = {'epoch': 1, 'iter': 4000, 'mmengine_version': f'{mmengine.__version__}{"3e" * 20}',
            'dataset_meta': {'classes': ('0',)}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta, 'optimizer': {'state': torch.ones(3)},
                'message_hub': {'log_scalars': {'loss': HistoryBuffer([1.0], [1])}}}, tmp_path / 'iter_4000.pth')
    if measured:
        (tmp_path / 'summary.json').write_text(json.dumps({'box_ap': 0.756, 'mask_ap': 0.642}))
    run_tool('publish_model.py', str(CONFIG), str(tmp_path / 'iter_4000.pth'), str(tmp_path / 'digits.pth'))
    (published,) = tmp_path.glob('digits*.pth')
    printed = capfd.readouterr()
    paths = re.findall(rf'{re.escape(str(tmp_path))}\S*', printed.out + printed.err)
    assert [Path(path) for path in paths] == [published, published.with_suffix('.md')]
    assert published.stem == f'digits-{hashlib.sha256(published.read_bytes()).hexdigest()[:8]}'
    assert torch.load(published, weights_only=True).keys() == {'state_dict', 'meta'}
    card = published.with_suffix('.md').read_text()
    for fact in ('| config | mask_rcnn_r18_gnws_digits.py |', '| data | CocoDataset data/digits/ |',
                 '| norm | GroupNorm |', f'mmws {__version__} |',
                 '34 convolutions; (w - mean) / (std + eps), the unbiased std, eps 1e-05', 'iter 4000',
                 f'mmengine {mmengine.__version__}, ',
                 'box_ap 0.756, mask_ap 0.642' if measured else f'not measured: {tmp_path.name} has no summary.json'):
        assert fact in card


@needs_torch('2.6', 'a list of allowed globals', ALLOWS_NAMED_GLOBALS)
def test_the_script_reads_checkpoints_of_mmengine(tmp_path):
    torch.save({'meta': {}, 'state_dict': {}, 'message_hub': HistoryBuffer([1.0], [1])}, tmp_path / 'x.pth')
    torch.serialization.clear_safe_globals()
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(tmp_path / 'x.pth')
    assert publish_model(tmp_path / 'x.pth', tmp_path / 'y.pth').is_file()


def test_a_users_mistake_is_one_line_and_no_file_is_written(tmp_path):
    torch.save({'a': torch.ones(1)}, tmp_path / 'x.pth')
    arguments = ['publish_model.py', str(CONFIG), str(tmp_path / 'x.pth')]
    assert 'does not fit' in tool_error(*arguments, str(tmp_path / 'y.pth'))
    assert 'folder no not found' in tool_error(*arguments, 'no/y.pth')
    assert len(list(tmp_path.iterdir())) == 1

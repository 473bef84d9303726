import os
import pickle
from operator import attrgetter

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmws.openmmlab.safe_globals import allow_log_history
from mmws.ops.torch_compat import ALLOWS_NAMED_GLOBALS
from tests.helpers.versions import needs_torch


class Attack:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.fixture(autouse=True)
def _allowed():
    allow_log_history()


@needs_torch('2.6', 'a list of allowed globals', ALLOWS_NAMED_GLOBALS)
def test_loads_a_log_history(tmp_path):
    history = HistoryBuffer()
    history.update(1.5)
    history.update(3)
    torch.save({'message_hub': history}, tmp_path / 'x.pth')
    read = torch.load(tmp_path / 'x.pth', weights_only=True)['message_hub']
    assert (read.mean(), read.statistics('max')) == (2.25, 3)


@pytest.mark.parametrize('attack', [
    Attack(os.system, ('touch hacked',)),
    Attack(getattr, (HistoryBuffer, '__init__')),
    Attack(getattr, (HistoryBuffer.mean, '__globals__')),
    Attack(attrgetter('mean'), (HistoryBuffer,)),
], ids=['a command', 'a method of the history', 'its globals', 'an attribute'])
def test_refuses_other_objects(attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'message_hub': attack}, 'x.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load('x.pth', weights_only=True)
    assert not (tmp_path / 'hacked').exists()

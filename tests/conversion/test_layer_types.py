import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv.ops import SyncBatchNorm as MmcvSyncBatchNorm
from mmengine.model.utils import _BatchNormXd
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import distributed, nn

from mmws.conversion.layer_types import is_batch_norm, is_norm
from mmws.conversion.replace_norms import replace_norm_
from mmws.layers.batch_channel_norm import group_count


@given(st.integers(1, 4096), st.integers(1, 64))
def test_group_count_is_the_largest_divisor_within_the_bound(channels, at_most):
    groups = group_count(channels, at_most)
    assert channels % groups == 0
    assert groups <= at_most
    assert not any(channels % more == 0 for more in range(groups + 1, min(at_most, channels) + 1))


@pytest.fixture
def process_group():
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures('process_group')
@pytest.mark.parametrize('kind', [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm,
                                  MmcvSyncBatchNorm, _BatchNormXd])
def test_every_batch_norm_becomes_the_group_norm_of_torch(kind):
    norm = kind(48, eps=1e-3).eval()
    nn.init.uniform_(norm.weight)
    weight = norm.weight
    assert is_batch_norm(norm)
    assert replace_norm_(norm) is norm
    reference = nn.GroupNorm(24, 48)
    reference.load_state_dict(norm.state_dict())
    assert vars(norm).keys() == vars(reference).keys()
    assert norm.weight is weight
    assert not norm.training
    x = torch.randn(2, 48, 5)
    for replica in (norm, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(replica(x), reference(x))


def test_hooks_are_kept():
    norm, calls = nn.BatchNorm2d(4), []
    norm.register_forward_hook(lambda *_: calls.append(1))
    replace_norm_(norm)(torch.randn(1, 4, 2, 2))
    assert calls == [1]


def test_missing_affine_parameters_stay_none():
    norm = replace_norm_(nn.BatchNorm2d(8, affine=False))
    assert norm.weight is norm.bias is None
    assert norm(torch.randn(1, 8, 2, 2)).shape == (1, 8, 2, 2)


def test_types_of_norms():
    class Renorm(nn.BatchNorm2d):
        pass

    assert is_norm(nn.GroupNorm(2, 4))
    assert is_norm(nn.InstanceNorm2d(4))
    assert is_norm(Renorm(4))
    assert not is_batch_norm(Renorm(4))
    assert not is_norm(nn.LayerNorm(4))


def test_the_activation_of_timms_norm_is_kept():
    norm_act = pytest.importorskip('timm.layers.norm_act')
    norm = norm_act.BatchNormAct2d(8, act_layer=nn.SiLU)
    nn.init.normal_(norm.weight)
    reference = norm_act.GroupNormAct(8, num_groups=8, act_layer=nn.SiLU)
    x = torch.randn(2, 8, 5, 5)
    replace_norm_(norm)
    reference.load_state_dict(norm.state_dict())
    assert type(norm) is norm_act.GroupNormAct
    torch.testing.assert_close(norm(x), reference(x))

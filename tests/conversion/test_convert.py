import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mmws import ConvWS1d, ConvWS2d, ConvWS3d, WSError, convert_


class Block(nn.Module):
    """Names its norm by type, as mmcv's modules do."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3)
        self.norm1_name = 'bn1'
        self.add_module(self.norm1_name, nn.BatchNorm2d(64))
        self.bn_fixed = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 2, 1)

    def forward(self, x):
        return self.conv2(self.bn_fixed(getattr(self, self.norm1_name)(self.conv1(x))))


def test_norm_names_follow_the_type_where_the_module_keeps_the_name():
    net = Block()
    report = convert_(net)
    assert list(net._modules) == ['conv1', 'gn1', 'bn_fixed', 'conv2']
    assert report.converted == ['conv1']
    assert report.skipped == {'conv2': 'no norm takes its output: it leaves the network'}
    assert report.norms == {'gn1': 'BatchNorm2d -> GroupNorm(32, 64)', 'bn_fixed': 'BatchNorm2d -> GroupNorm(32, 64)'}
    assert net(torch.randn(1, 3, 8, 8)).shape == (1, 2, 6, 6)


def test_every_dimension():
    net = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4),
                        nn.Conv2d(3, 4, 2), nn.SyncBatchNorm(4))
    convert_(net)
    assert [type(module) for module in net] == [ConvWS1d, nn.GroupNorm, ConvWS3d, nn.GroupNorm, ConvWS2d, nn.GroupNorm]


def test_a_converted_model_stays_as_it_is():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    convert_(net, eps=1e-3)
    before = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        report = convert_(net)
    assert str(net) == str(before)
    assert (report.converted, report.norms) == ([], {})
    assert report.skipped == {'0': 'already standardized'}


def test_modes_gradients_sharing_and_copies_survive():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Sequential(conv, norm), nn.Sequential(conv, norm)).eval()
    conv.requires_grad_(False)
    norm.requires_grad_(False)
    parameters = list(net.parameters())
    report = convert_(net)
    assert report.converted == ['0.0']
    assert net[0][0] is net[1][0] is conv
    assert net[0][1] is net[1][1] is norm
    assert all(ours is theirs for ours, theirs in zip(net.parameters(), parameters, strict=True))
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in net.modules())
    x = torch.randn(1, 4, 3, 3)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x))


def test_a_norm_frozen_for_its_statistics_trains_as_group_norm():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).requires_grad_(False))
    convert_(net)
    assert net[1].weight.requires_grad


def test_keep_leaves_the_norms():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    report = convert_(net, norm='keep')
    assert [type(module) for module in net] == [ConvWS2d, nn.BatchNorm2d]
    assert report.norms == {}


def test_excluded_convs_stay_plain_and_their_norms_are_replaced():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    report = convert_(net, exclude=['2'], num_groups=2)
    assert [type(module) for module in net] == [ConvWS2d, nn.GroupNorm, nn.Conv2d, nn.GroupNorm]
    assert report.skipped == {'2': "excluded by '2'"}
    assert net[3].num_groups == 2


def test_what_cannot_be_standardized_is_named():
    class Odd(nn.Conv2d):
        pass

    class OddNorm(nn.BatchNorm2d):
        pass

    net = nn.Sequential(Odd(3, 4, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 1, groups=4),
                        nn.BatchNorm2d(4),
                        nn.Conv2d(4, 4, 1, groups=4), OddNorm(4), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4))
    assert convert_(net).skipped == {
        '0': 'Odd has no standardized form',
        '2': 'a fan-in of 1 has no standard deviation',
        '4': 'a fan-in of 1 has no standard deviation',
        '5': 'OddNorm is a BatchNorm of unknown behaviour',
    }
    assert type(net[5]) is OddNorm


@pytest.mark.parametrize(('net', 'why'), [
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), 'it has no normalization layer'),
    (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 'none of its normalization layers takes the output of a conv'),
])
def test_a_model_with_nothing_to_convert_is_warned_of(net, why):
    with pytest.warns(UserWarning, match=f'nothing was standardized in Sequential: {why}'):
        convert_(net)


@pytest.mark.parametrize(('options', 'message'), [
    ({'nrom': 'GN'}, "unknown ws option 'nrom': did you mean 'norm'"),
    ({'colour': 1}, "unknown ws option 'colour': expected one of 'eps', 'exclude', .*'num_groups', 'weight'"),
    ({'norm': np.ones(2)}, r"norm: expected 'GN', .* or 'keep', got array\(\[1\., 1\.\]\)"),
    ({'norm': 'BN'}, "norm: expected 'GN', .* or 'keep', got 'BN'"),
    ({'num_groups': 0}, 'num_groups: expected a positive integer, got 0'),
    ({'num_groups': 32.0}, r'num_groups: expected a positive integer, got 32\.0'),
    ({'num_groups': True}, 'num_groups: expected a positive integer, got True'),
    ({'eps': -1e-5}, 'eps: expected a number from 0 on, got -1e-05'),
    ({'eps': '1e-5'}, "eps: expected a number from 0 on, got '1e-5'"),
    ({'eps': float('nan')}, 'eps: expected a number from 0 on, got nan'),
    ({'exclude': '0'}, r"exclude: expected a list of globs such as \['neck"),
    ({'exclude': [0]}, 'exclude: expected a list of globs'),
    ({'exclude': ['convv1']}, "exclude: 'convv1' matches no convolution of Block; did you mean 'conv1'"),
])
def test_wrong_options_are_refused_and_the_model_is_untouched(options, message):
    net = Block()
    before = str(net)
    with pytest.raises(WSError, match=message):
        convert_(net, **options)
    assert str(net) == before


def test_include_names_the_only_ones_and_lets_a_layer_norm_count():
    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.LayerNorm([4, 512, 512]),
                             nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    assert convert_(net()).converted == ['0', '6']
    report = convert_(net(), include=['[24]', '6'], exclude=['6'])
    assert report.converted == ['2']
    assert report.skipped == {'0': "not in include=['[24]', '6']", '4': 'no norm takes its output: relu',
                              '6': "excluded by '6'"}
    assert len(report.norms) == 2  # whatever the globs say
    with pytest.raises(WSError, match=r"ws option include: 'nekc\.' matches no convolution of Sequential"):
        convert_(net(), include=['nekc.'])


def test_the_report_names_what_no_run_showed():
    class Unrunnable(nn.Sequential):
        def forward(self, x, y, *, z):
            raise NotImplementedError

    report = convert_(Unrunnable(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())))
    assert report.unseen == ['0']
    assert report.converted == ['0']
    assert '  not seen run  0: judged by the module tree' in str(report)

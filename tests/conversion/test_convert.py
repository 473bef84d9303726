import copy
import inspect
import pickle
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from mmws import ConvWS1d, ConvWS2d, ConvWS3d, Options, WSError, convert_
from tests.helpers.pairs import pairs


class Block(nn.Module):
    """Stores the name of its norm, as mmcv's modules do."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3)
        self.norm1_name = 'bn1'
        self.add_module(self.norm1_name, nn.BatchNorm2d(64))
        self.bn_fixed = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 2, 1)

    def forward(self, x):
        return self.conv2(self.bn_fixed(getattr(self, self.norm1_name)(self.conv1(x))))


def test_norms_are_renamed_if_the_parent_stores_the_name():
    net = Block()
    report = convert_(net)
    assert list(net._modules) == ['conv1', 'gn1', 'bn_fixed', 'conv2']
    assert report.converted == ['conv1']
    assert report.skipped == {'conv2': 'no norm follows: the output leaves the network'}
    assert report.norms == {'gn1': 'BatchNorm2d -> GroupNorm(32, 64)', 'bn_fixed': 'BatchNorm2d -> GroupNorm(32, 64)'}
    assert net(torch.randn(1, 3, 8, 8)).shape == (1, 2, 6, 6)


def test_1d_2d_and_3d():
    net = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4),
                        nn.Conv2d(3, 4, 2), nn.SyncBatchNorm(4))
    convert_(net)
    assert [type(module) for module in net] == [ConvWS1d, nn.GroupNorm, ConvWS3d, nn.GroupNorm, ConvWS2d, nn.GroupNorm]


def test_a_second_conversion_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    convert_(net, eps=1e-3)
    before = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        report = convert_(net)
    assert str(net) == str(before)
    assert (report.converted, report.norms) == ([], {})
    assert report.skipped == {'0': 'already standardized'}


def test_mode_gradients_sharing_and_copies_are_kept():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Sequential(conv, norm), nn.Sequential(conv, norm)).eval()
    conv.requires_grad_(False)
    norm.requires_grad_(False)
    parameters = list(net.parameters())
    report = convert_(net)
    assert report.converted == ['0.0']
    assert net[0][0] is net[1][0] is conv
    assert net[0][1] is net[1][1] is norm
    assert all(after is before for after, before in pairs(net.parameters(), parameters))
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in net.modules())
    x = torch.randn(1, 4, 3, 3)
    for replica in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(replica(x), net(x))


def test_a_frozen_batch_norm_becomes_a_group_norm_that_trains():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).requires_grad_(False))
    convert_(net)
    assert net[1].weight.requires_grad


def test_norm_keep_changes_no_norm():
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


def test_unsupported_layers_are_reported():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight * 2)

    class OddNorm(nn.BatchNorm2d):
        pass

    net = nn.Sequential(Odd(3, 4, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 1, groups=4),
                        nn.BatchNorm2d(4),
                        nn.Conv2d(4, 4, 1, groups=4), OddNorm(4), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4))
    assert convert_(net).skipped == {
        '0': 'Odd: weight read by mul()',
        '2': 'fan-in of 1: the standard deviation is undefined',
        '4': 'fan-in of 1: the standard deviation is undefined',
        '5': 'OddNorm is an unknown subclass of BatchNorm',
    }
    assert type(net[5]) is OddNorm


@pytest.mark.parametrize(('net', 'why'), [
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), 'it has no norm'),
    (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 'it has no convolution'),
])
def test_warns_if_no_convolution_is_converted(net, why):
    with pytest.warns(UserWarning, match=f'nothing was standardized in Sequential: {why}'):
        convert_(net)


@pytest.mark.parametrize(('options', 'message'), [
    ({'nrom': 'GN'}, "unknown ws option 'nrom': did you mean 'norm'"),
    ({'colour': 1}, "unknown ws option 'colour': expected one of 'cache', 'eps', .*'num_groups', 'weight'"),
    ({'norm': np.ones(2)}, r"norm: expected 'GN', .* or 'keep', got array\(\[1\., 1\.\]\)"),
    ({'norm': 'BN'}, "norm: expected 'GN', .* or 'keep', got 'BN'"),
    ({'num_groups': 0}, 'num_groups: expected a positive integer, got 0'),
    ({'num_groups': 32.0}, r'num_groups: expected a positive integer, got 32\.0'),
    ({'num_groups': True}, 'num_groups: expected a positive integer, got True'),
    ({'eps': -1e-5}, 'eps: expected a finite number >= 0, got -1e-05'),
    ({'eps': '1e-5'}, "eps: expected a finite number >= 0, got '1e-5'"),
    ({'eps': float('nan')}, 'eps: expected a finite number >= 0, got nan'),
    ({'exclude': '0'}, r"exclude: expected a list of globs such as \['neck"),
    ({'exclude': [0]}, 'exclude: expected a list of globs'),
    ({'exclude': ['convv1']}, "exclude: 'convv1' matches no convolution of Block; did you mean 'conv1'"),
])
def test_wrong_options_raise_and_leave_the_model_unchanged(options, message):
    net = Block()
    before = str(net)
    with pytest.raises(WSError, match=message):
        convert_(net, **options)
    assert str(net) == before


def test_the_signature_lists_the_options():
    parameters = inspect.signature(convert_).parameters.values()
    options = [(parameter.name, parameter.annotation, parameter.default) for parameter in parameters
               if parameter.kind is parameter.KEYWORD_ONLY]
    assert options.pop() == ('inputs', 'Any', None)  # is no option of a config
    assert options == [(field.name, field.type, field.default) for field in fields(Options)]
    described = inspect.getdoc(convert_)  # Python 3.13 has removed the indentation
    assert all(f'\n    {name}: ' in described for name, *_ in options)


@pytest.mark.parametrize('name', [field.name for field in fields(Options)])
def test_each_option_of_the_signature_is_checked(name):
    with pytest.raises(WSError, match=f'ws option {name}'):
        convert_(nn.Conv2d(3, 4, 1), **{name: object()})


def test_include_selects_convolutions_and_accepts_a_layer_norm():
    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.LayerNorm([4, 512, 512]),
                             nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    assert convert_(net()).converted == ['0', '6']
    report = convert_(net(), include=['[24]', '6'], exclude=['6'])
    assert report.converted == ['2']
    assert report.skipped == {'0': "not in include=['[24]', '6']", '4': 'no norm follows: relu',
                              '6': "excluded by '6'"}
    assert len(report.norms) == 2  # the globs do not apply to norms
    with pytest.raises(WSError, match=r"ws option include: 'nekc\.' matches no convolution of Sequential"):
        convert_(net(), include=['nekc.'])


def test_the_report_lists_convolutions_that_did_not_run():
    class Unrunnable(nn.Sequential):
        def forward(self, x, y, *, z):
            raise NotImplementedError

    report = convert_(Unrunnable(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())))
    assert report.unseen == ['0']
    assert report.converted == ['0']
    assert '  not run       0: decided by the module tree' in str(report)


@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning', 'ignore:nothing was')
@pytest.mark.parametrize('name', ['weight_norm', 'spectral_norm'])
def test_a_weight_that_a_hook_of_torch_computes_stays(name):
    net = nn.Sequential(getattr(nn.utils, name)(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    report = convert_(net)
    assert report.skipped == {'0': f'torch.nn.utils.{name} computes its weight; undo it first with '
                                   f'torch.nn.utils.remove_{name}'}
    getattr(nn.utils, f'remove_{name}')(net[0])
    assert convert_(net).converted == ['0']


@pytest.mark.filterwarnings('ignore:nothing was')
def test_a_lone_layer_has_a_name_in_the_report():
    assert '  unchanged     the network itself: no norm follows' in str(convert_(nn.Conv2d(3, 8, 3)))
    assert '  norm          the network itself: BatchNorm2d -> GroupNorm' in str(convert_(nn.BatchNorm2d(8)))

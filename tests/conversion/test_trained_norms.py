import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from mmws import convert_, fold


class Net(nn.Module):
    """Contains another network, as a detector its backbone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x):
        return self.head(self.stem(x))


def trained(net: nn.Module) -> nn.Module:
    """Run one step of training, which changes the statistics."""
    net.train()(torch.randn(2, 3, 9, 9))
    return net


@pytest.fixture
def warned():
    """Return the list of all warnings of a test."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        yield found


@pytest.mark.parametrize('options', [{}, {'norm': 'EstBN'}, {'norm': 'keep'}, {'weight': 'plain'},
                                     {'norm': 'keep', 'weight': 'spectral'}], ids=str)
def test_the_conversion_of_a_trained_network_warns_once(options):
    net = trained(Net())
    with pytest.warns(UserWarning, match='was trained') as caught:
        convert_(net, **options)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith('Net was trained with BatchNorm: the statistics of stem.1 and 1 more do not fit')
    assert 'Convert with mmws.transplant_' in message
    assert 'or train the converted network again' in message
    assert caught[0].filename == __file__


@pytest.mark.parametrize(('name', 'value'), [('running_mean', 0.1), ('running_var', 0.9), ('num_batches_tracked', 1)])
def test_each_statistic_tells(name, value):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    getattr(net[1], name).fill_(value)
    with pytest.warns(UserWarning, match=r'the statistics of 1 do not fit'):
        convert_(net)


def affine(scale, shift, **options):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options))
    net[1].weight.data.copy_(torch.as_tensor(scale))
    net[1].bias.data.copy_(torch.as_tensor(shift))
    return net


def test_scales_and_shifts_tell():
    """Caffe2's weights have mean 0 and variance 1."""
    net, weights = affine(1, 0), affine(torch.rand(8), torch.rand(8)).state_dict()
    with pytest.warns(UserWarning, match=r'the statistics of 1 do not fit'):
        convert_(affine(torch.rand(8), torch.rand(8)))
    convert_(net)
    with pytest.warns(UserWarning, match=r'were trained with BatchNorm: 1\.running_mean do not fit'):
        net.load_state_dict(weights, strict=False)


def test_scales_and_shifts_of_an_initialization_do_not_warn(warned):
    convert_(affine(0, 0))
    convert_(affine(torch.rand(8), 0))  # as GANs do
    convert_(affine(torch.rand(8), torch.rand(8), track_running_stats=False))
    assert warned == []


def test_what_loses_nothing_does_not_warn(warned):
    convert_(Net())
    convert_(Net().to('meta'))
    for options in ({'norm': 'keep', 'weight': 'plain'}, {'norm': 'keep', 'weight': 'wn'}):
        if options['weight'] != 'wn' or hasattr(nn.utils.parametrizations, 'weight_norm'):
            convert_(trained(Net()), **options)
    net = Net()
    convert_(net, norm='keep')
    convert_(trained(net), norm='keep')  # trained as it is
    untouched = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    convert_(trained(untouched), norm='keep', exclude=['2'])
    assert warned == []


@pytest.mark.parametrize('make', [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
                         ids=['itself', 'copy', 'pickle'])
def test_loading_batch_norm_weights_warns_once(make):
    net, weights = Net(), trained(Net()).state_dict()
    convert_(net)
    net = make(net)
    part = {key[len('stem.'):]: value for key, value in weights.items() if key.startswith('stem.')}
    wrapped = {f'0.{key}': value for key, value in weights.items()}
    for module, state, found in ((net, weights, r'stem.1.running_mean and 1 more'), (net.stem, part, '1.running_mean'),
                                 (nn.Sequential(net), wrapped, '0.stem.1.running_mean and 1 more')):
        with pytest.warns(UserWarning, match='were trained') as caught:
            module.load_state_dict(state, strict=False)
        (message,) = [str(warning.message) for warning in caught]
        assert f'were trained with BatchNorm: {found} do not fit the other norms' in message
        assert 'load weights that were trained with the same norm' in message


def test_loading_weights_that_fit_does_not_warn(warned):
    net = Net()
    convert_(net)
    net.load_state_dict(copy.deepcopy(net).state_dict())
    net.load_state_dict(Net().state_dict(), strict=False)  # never trained
    assert warned == []


def test_a_folded_network_needs_no_mmws():
    net = Net()
    convert_(net)
    assert b'mmws' not in pickle.dumps(fold(net.eval()))

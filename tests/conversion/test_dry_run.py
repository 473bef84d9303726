"""The dry run on the user's inputs and on guessed ones, with networks that raise anything."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from torch import nn

from mmws import WSError, convert_


class Subclass(nn.Conv2d):
    pass


class Causal(nn.Conv1d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (self.kernel_size[0] - 1, 0)))


class Text(nn.Module):
    """A network whose input cannot be guessed: it reads values, of two arguments, one a mapping."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.conv, self.norm, self.other = Causal(4, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 2, 1)

    def forward(self, batch, times):
        if batch['tokens'].max().item() > 9:
            raise ValueError('an unknown token')
        x = self.embedding(batch['tokens']).transpose(1, 2)
        return [self.other(self.norm(self.conv(x))) for _ in range(times)]


BATCH = {'tokens': torch.arange(10).view(2, 5)}


@pytest.mark.parametrize('inputs', [(BATCH, 2), [BATCH, 2], {'batch': BATCH, 'times': 2}],
                         ids=['tuple', 'list', 'mapping'])
def test_example_inputs_decide_where_an_image_cannot(inputs):
    assert convert_(Text()).unseen == ['conv', 'other']
    before = copy.deepcopy(net := Text())
    report = convert_(net, inputs=inputs)
    assert (report.converted, report.unseen) == (['conv'], [])
    assert report.skipped == {'other': 'no norm follows: the output leaves the network'}
    assert torch.equal(net.conv.weight, before.conv.weight)


def test_example_inputs_of_one_value_per_channel():
    report = convert_(net := nn.Sequential(Subclass(3, 16, 3), nn.BatchNorm2d(16)), inputs=torch.randn(1, 3, 3, 3))
    assert report.converted == ['0']
    assert net[1].num_groups == 2  # a group of one channel would have a single value


def assert_unchanged(net, before):
    """Compare the values and modes of ``net`` with those of its copy ``before``."""
    torch.testing.assert_close(net.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert [module.training for module in net.modules()] == [module.training for module in before.modules()]


def test_the_network_its_example_inputs_and_the_random_state_stay_as_they_are():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout())
    net[3].eval()
    x, state, before = -torch.ones(1, 3, 5, 5), torch.random.get_rng_state(), copy.deepcopy(net)
    assert convert_(net, inputs=x, norm='keep').converted == ['1']
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(x, -torch.ones(1, 3, 5, 5))
    assert_unchanged(net, before)


class CallsItself(nn.Conv2d):
    def forward(self, x):
        return [self(each) for each in x] if isinstance(x, list) else super().forward(x)


class Conditional(nn.BatchNorm2d):
    def forward(self, x, flag=False):
        return super().forward(x)


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = CallsItself(3, 8, 3), Conditional(8)

    def forward(self, x):
        return [self.norm(each, flag=True) for each in self.conv([x, x])]


def test_example_inputs_with_gradients_for_a_module_that_calls_itself():
    report = convert_(Pairs(), inputs=2 * torch.randn(2, 3, 5, 5, requires_grad=True), norm='keep')
    assert report.converted == ['conv']


def test_a_network_that_cannot_be_copied_has_no_use_for_inputs():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    net.lock = threading.Lock()
    with pytest.raises(WSError, match='the network cannot be copied to run on the inputs: TypeError: cannot pickle'):
        convert_(net, inputs=torch.randn(1, 3, 5, 5))


def test_inputs_on_which_the_network_does_not_run_are_refused_and_it_is_unchanged():
    net = Text()
    net.norm.eval()
    before = copy.deepcopy(net)
    with pytest.raises(WSError, match=r'the network does not run on the inputs: ValueError: an unknown token; expected '
                                      r'the arguments of Text\.forward as a tuple, or as a mapping'):
        convert_(net, inputs=({'tokens': torch.full((1, 5), 11)}, 1))
    assert repr(net) == repr(before)
    assert_unchanged(net, before)


class FailsInOneMode(nn.Module):
    def __init__(self, failing_mode):
        super().__init__()
        self.conv, self.norm, self.failing_mode = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), failing_mode

    def forward(self, x):
        if self.training is self.failing_mode:
            raise ValueError('no targets')
        return self.norm(self.conv(x))


@pytest.mark.parametrize(('failing_mode', 'failed', 'ran'), [
    (True, 'training', 'evaluation'), (False, 'evaluation', 'training')], ids=['training', 'evaluation'])
def test_a_mode_that_fails_on_the_inputs_is_named(failing_mode, failed, ran):
    with pytest.warns(UserWarning, match='convert_') as caught:
        report = convert_(FailsInOneMode(failing_mode), inputs=torch.randn(2, 3, 5, 5))
    assert report.converted == ['conv']
    message = (f'convert_: the network does not run on the inputs in {failed} mode: ValueError: no targets; {ran} mode '
               'alone shows what follows the convolutions. Give inputs for both modes (with targets, for example), or '
               f'exclude the convolutions whose output {failed} mode uses without a norm')
    assert [(str(warning.message), warning.filename) for warning in caught] == [(message, __file__)]


class LossWithoutNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, batch, targets=None):
        y = self.conv(batch['image'])
        return (self.norm(y), (y - targets).abs().mean()) if self.training else self.norm(y)


def test_inputs_for_both_modes_show_all_consumers():
    batch = {'image': torch.randn(2, 3, 5, 5)}
    with pytest.warns(UserWarning, match='does not run on the inputs in training mode'):
        assert convert_(LossWithoutNorm(), inputs=(batch, )).converted == ['conv']
    with pytest.warns(UserWarning, match='nothing was standardized') as caught:
        report = convert_(LossWithoutNorm(), inputs=(batch, torch.zeros(1)))
    assert report.skipped == {'conv': 'not only norms follow: sub'}
    assert len(caught) == 1


class Raises(nn.Module):
    """A network that raises an exception at one of its places of foreign code."""

    def __init__(self, error, place):
        super().__init__()
        self.conv, self.norm, self.error, self.place = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), error, place

    def reach(self, place):
        if self.place == place:
            raise self.error

    def forward(self, x):
        self.reach('forward')
        return self.norm(self.conv(x))

    def train(self, mode=True):
        self.reach('train')
        return super().train(mode)

    def __reduce_ex__(self, protocol):
        self.reach('copy')
        return super().__reduce_ex__(protocol)

    @property
    def extract_feat(self):
        self.reach('inspection')
        raise AttributeError


ERRORS = [Exception, OSError, StopIteration]


@pytest.mark.parametrize('place', ['forward', 'train', 'copy', 'inspection'])
@pytest.mark.parametrize('error', ERRORS)
def test_the_module_tree_decides_whatever_the_network_raises(error, place):
    report = convert_(Raises(error, place))
    assert (report.converted, report.unseen) == (['conv'], ['conv'])


@pytest.mark.parametrize(('place', 'message'), [
    ('forward', 'does not run on the inputs'), ('train', 'does not run on the inputs'),
    ('copy', 'cannot be copied to run on the inputs')])
@pytest.mark.parametrize('error', ERRORS)
def test_whatever_the_network_raises_on_the_inputs_is_named(error, place, message):
    with pytest.raises(WSError, match=f'convert_: the network {message}: {error.__name__}'):
        convert_(Raises(error, place), inputs=torch.randn(2, 3, 5, 5))


class RaisingConv(nn.Conv2d):
    error = None

    def forward(self, x):
        raise self.error


class ConvWithoutTraining(nn.Conv2d):
    def train(self, mode=True):
        if mode:
            raise OSError('frozen')
        return super().train(mode)


def test_a_convolution_that_refuses_a_mode_does_not_end_the_dry_run():
    net = nn.Sequential(ConvWithoutTraining(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    report = convert_(net)
    assert (report.converted, report.unseen) == (['2'], [])
    assert report.skipped == {'0': 'ConvWithoutTraining: it ran in evaluation mode only'}


@pytest.mark.parametrize('error', ERRORS)
def test_a_convolution_that_raises_anything_stays_plain(error):
    conv = RaisingConv(3, 8, 3)
    conv.error = error
    with pytest.warns(UserWarning, match=f'nothing was standardized .*did not run .{error.__name__}'):
        assert convert_(nn.Sequential(conv, nn.BatchNorm2d(8))).converted == []


class FrozenTraining(FailsInOneMode):
    def train(self, mode=True):
        if mode:
            raise RuntimeError('frozen')
        return super().train(mode)


def test_a_network_that_refuses_a_mode():
    with pytest.warns(UserWarning, match='in training mode: RuntimeError: frozen; evaluation mode alone'):
        assert convert_(FrozenTraining(None), inputs=torch.randn(2, 3, 5, 5)).converted == ['conv']


class CopiesItself(nn.Sequential):
    def __deepcopy__(self, memo):
        return CopiesItself(nn.Conv2d(3, 8, 3))


def test_a_network_that_copies_itself_in_another_way():
    def network():
        return CopiesItself(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    assert convert_(network()).unseen == ['0']
    with pytest.raises(WSError, match=r'cannot be copied to run on the inputs: RuntimeError: copy\.deepcopy gives a '
                                      'network with 2 modules, expected 3: a module has a __deepcopy__ of its own'):
        convert_(network(), inputs=torch.randn(2, 3, 5, 5))


class Warns(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        warnings.warn('an odd image', stacklevel=1)
        return self.norm(self.conv(x))


def test_warnings_on_guessed_inputs_do_not_reach_the_user():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        report = convert_(Warns())
    assert (report.converted, report.unseen) == (['conv'], [])
    assert [str(warning.message) for warning in caught] == []


class FailsOnLargeImages(nn.Module):
    """The first guess, an image of 512 pixels, does not run to its end."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(x)
        if x.shape[-1] > 64:
            nn.functional.conv2d(y.square(), torch.ones(1, 8, 1, 1))
            raise ValueError('too large')
        return self.norm(y)


def test_a_run_that_fails_leaves_no_record():
    report = convert_(FailsOnLargeImages())
    assert (report.converted, report.functions) == (['conv'], {})


class CreatesItsNorm(nn.Module):
    """Creates layers in the first forward pass, when it knows their number of channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.late, self.norm = nn.Conv2d(3, 8, 3), None, nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.norm(self.conv(x))
        if self.late is None:
            self.late = nn.Conv2d(8, 8, 1).to(x.device)
        return self.late(x)


@pytest.mark.parametrize('inputs', [None, torch.randn(2, 3, 5, 5)], ids=['guessed', 'given'])
def test_a_layer_that_the_first_forward_pass_creates(inputs):
    report = convert_(net := CreatesItsNorm(), inputs=inputs)
    assert (report.converted, report.unseen, net.late) == (['conv'], [], None)
    assert [texts for where, texts in report.functions.items() if __file__ in where] == [['conv2d, weight: computed']]

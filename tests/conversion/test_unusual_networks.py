"""Networks in which a norm follows a convolution, and something else uses its output, its weight or the norm."""

from __future__ import annotations

import copy
import random
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from mmws import WSError, convert_


class Net(nn.Module):
    """Two convolutions and a norm; the forward is the one of a test."""

    def __init__(self, norm, forward=None):
        super().__init__()
        self.conv, self.other, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), norm
        self.steps = forward or (lambda net, x: net.norm(net.conv(x), net.other(x)))

    def forward(self, x):
        return self.steps(self, x)


class Scaled(nn.GroupNorm):
    def forward(self, x, scale):
        return super().forward(x) * scale


class Shortcut(nn.BatchNorm2d):
    def forward(self, x, shortcut):
        return super().forward(x) + shortcut


class Residual(nn.InstanceNorm2d):
    def forward(self, x, other):
        return super().forward(x) + x


class Affine(nn.BatchNorm2d):
    def forward(self, x, other):
        return x * self.weight[:, None, None] + super().forward(other)


@pytest.mark.parametrize('inputs', [None, torch.zeros(2, 3, 4, 4)], ids=['guessed', 'given'])
@pytest.mark.parametrize(('norm', 'skipped'), [
    (Scaled(2, 8), {'other': 'no norm follows: mul'}), (Shortcut(8), {'other': 'no norm follows: add'}),
    (Residual(8), {'conv': 'not only norms follow: add', 'other': 'no norm follows: the output leaves the network'}),
    (Affine(8), {'conv': 'no norm follows: mul'})], ids=lambda value: type(value).__name__)
def test_what_else_the_forward_of_a_norm_does(norm, skipped, inputs):
    report = convert_(Net(copy.deepcopy(norm)), inputs=inputs)
    assert {name: reason for name, reason in report.skipped.items() if 'subclass' not in reason} == skipped
    assert set(report.converted) == {'conv', 'other'} - set(skipped)


class Part(nn.Module):
    """A part of a network whose output is both a norm's and the convolution's own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        features = self.conv(x)
        return self.norm(features), features


class Numbers(nn.Module):
    """A network that runs on given inputs only."""

    def __init__(self):
        super().__init__()
        self.part, self.head = Part(), nn.Conv2d(8, 2, 1)

    def forward(self, x, factor):
        normalized, raw = self.part(x)
        return self.head(normalized + factor['a'] * raw)


def test_the_output_of_a_part_that_runs_alone():
    report = convert_(Numbers())
    assert 'part.conv' in report.unseen
    report = convert_(Numbers(), inputs=(torch.zeros(1, 3, 4, 4), {'a': 2.}))
    assert report.skipped['part.conv'] == 'not only norms follow: mul'


@pytest.mark.parametrize('frames', [8, 16])
def test_frames_of_a_clip_in_the_batch(frames):
    """TSM folds them like this: a batch has to be a multiple of the number of frames."""
    def forward(net, x):
        shifted = x.view(-1, frames, *x.shape[1:]).roll(1, dims=1)
        return net.norm(net.conv(shifted.flatten(0, 1))) + net.other(x)

    assert list(convert_(Net(nn.BatchNorm2d(8), forward)).converted) == ['conv']


def test_guessed_volumes_are_small():
    """A network of sparse convolutions, for example, refuses every guess; on a real device each takes memory."""
    shapes = []

    class Sparse(nn.Sequential):
        def forward(self, x):
            shapes.append(x.shape)
            raise TypeError('expected a sparse tensor')

    convert_(Sparse(nn.Conv3d(4, 8, 3), nn.BatchNorm3d(8)))
    assert len(set(shapes)) > 3
    assert all(shape.numel() < 1e9 / 4 for shape in shapes)  # 1 GB


def test_a_mode_that_fails_on_an_image_is_named():
    def forward(net, x):
        features = net.conv(x)
        return functional.mse_loss(features, None) if net.training else net.norm(features + 0 * net.other(x))

    with pytest.warns(UserWarning, match='does not run on an image in training mode; evaluation mode alone shows'):
        convert_(Net(nn.BatchNorm2d(8), forward))


@pytest.mark.parametrize(('second', 'weight', 'reasons'), [
    (nn.Conv2d(8, 8, 1), 'ws', set()), (nn.ConvTranspose2d(8, 8, 1), 'ws', {'0', '2'}),
    (nn.Conv2d(8, 8, 1), 'spectral', {'0', '2'})])
def test_a_weight_that_two_convolutions_share(second, weight, reasons):
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), copy.deepcopy(second), nn.BatchNorm2d(8))
    net[2].weight = net[0].weight
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # nothing was converted
        report = convert_(net, weight=weight)
    assert {name for name, reason in report.skipped.items() if 'its weight is also that of' in reason} == reasons
    assert net[2].weight is net[0].weight


def test_a_weight_that_a_plain_convolution_shares():
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    net[2].weight = net[0].weight
    with pytest.warns(UserWarning, match='its weight is also that of 2'):
        assert convert_(net).skipped['0'] == 'its weight is also that of 2'


def test_a_pruned_weight_can_be_standardized_but_not_parametrized():
    def pruned():
        net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
                            nn.Conv2d(8, 2, 1, bias=False))
        prune.l1_unstructured(net[2], 'weight', 0.5)
        return net

    for inputs in (None, torch.zeros(1, 3, 4, 4)):  # it runs, though torch cannot copy it
        report = convert_(pruned(), inputs=inputs)
        assert (report.converted, report.unseen) == (['0', '2'], [])
    report = convert_(pruned(), weight='spectral')
    assert report.converted == ['0']
    assert report.skipped['2'] == 'Conv2d: its weight is no parameter, other code computes it'


class Teacher(nn.Sequential):
    """A network that returns itself as its copy, as frozen teachers do."""

    def __deepcopy__(self, memo):
        return self


def test_a_module_that_is_its_own_copy_does_not_run():
    teacher = Teacher(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).train()
    teacher[0].register_forward_hook(lambda *args: None)
    statistics = copy.deepcopy(teacher.state_dict())
    net = nn.Sequential(teacher, nn.Conv2d(8, 8, 1))
    with pytest.raises(WSError, match='returns a module of the network itself'):
        convert_(net, inputs=torch.randn(1, 3, 4, 4))
    assert teacher.training
    assert len(teacher[0]._forward_hooks) == 1
    assert 'forward' not in vars(teacher[0])
    assert all(torch.equal(value, statistics[name]) for name, value in teacher.state_dict().items())


def test_a_teacher_in_a_list_is_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    net.teachers = [nn.Conv2d(3, 8, 1)]
    assert convert_(net).skipped == {'teachers': 'not a registered submodule'}


class TwoNames(nn.Module):
    """A module like mmcv's that has another norm under the new name."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm1_name = nn.Conv2d(3, 8, 1), 'bn1'
        self.bn1, self.gn1 = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)

    def forward(self, x):
        return self.gn1(getattr(self, self.norm1_name)(self.conv(x)))


def test_a_norm_keeps_its_name_if_the_new_one_exists():
    net = TwoNames()
    convert_(net)
    assert net.norm1_name == 'bn1'
    assert [*net.state_dict()] == ['conv.weight', 'conv.bias', 'bn1.weight', 'bn1.bias', 'gn1.weight', 'gn1.bias']


def test_a_norm_with_a_forward_of_its_own_stays():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    net[1].forward = lambda x: functional.relu(x)
    with pytest.warns(UserWarning, match='nothing was standardized'):
        skipped = convert_(net).skipped
    assert skipped['0'] == 'no norm follows: relu'
    assert skipped['1'].startswith('BatchNorm2d has a forward of its own')
    assert type(net[1]) is nn.BatchNorm2d


def test_a_norm_of_an_unknown_class_that_does_not_run():
    def fails(net, x):
        raise NotImplementedError

    net = Net(Shortcut(8), fails)
    del net.other
    with pytest.warns(UserWarning, match='nothing was standardized'):
        skipped = convert_(net).skipped
    assert skipped['conv'] == 'no norm follows: Shortcut has a forward of its own, which did not run'


def test_random_numbers_stay_as_they_are():
    def forward(net, x):
        return net.norm(net.conv(x)) + net.other(x) * (random.random() + np.random.rand() + torch.rand(1, device='cpu'))

    net = Net(nn.BatchNorm2d(8), forward)
    draws = []
    for converted in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        if converted:
            convert_(net, inputs=torch.zeros(1, 3, 4, 4))
        draws.append((random.random(), np.random.rand(), float(torch.rand(1))))
    assert draws[0] == draws[1]


@dataclass
class Outputs:
    features: torch.Tensor
    raw: torch.Tensor


class Outs(dict):
    """A container that torch does not know."""


IMAGE = torch.zeros(2, 3, 4, 4)
LEAVES = {'conv': 'not only norms follow: the output leaves the network'}


@pytest.mark.parametrize('inputs', [None, IMAGE], ids=['guessed', 'given'])
@pytest.mark.parametrize('container', [
    Outputs, lambda z, y: SimpleNamespace(z=z, y=y), lambda z, y: Outs(z=z, y=y), lambda z, y: {z, y},
    lambda z, y: iter([z, y]), lambda z, y: (z, [Outs(y=SimpleNamespace(value=y))]),
    lambda z, y: Outputs(z, y) if torch.is_grad_enabled() else z],
    ids=['dataclass', 'object', 'dict', 'set', 'iterator', 'nested', 'in training'])
def test_outputs_of_any_class(container, inputs):
    net = Net(nn.BatchNorm2d(8), lambda net, x: container(net.norm(y := net.conv(x)), y))
    del net.other
    report = convert_(net, inputs=inputs)
    assert (report.converted, report.skipped) == ([], LEAVES)


def test_an_output_that_refers_to_the_network():
    net = Net(nn.BatchNorm2d(8), lambda net, x: SimpleNamespace(z=net.norm(net.conv(x)), net=net, call=net.forward))
    del net.other
    assert convert_(net, inputs=IMAGE).converted == ['conv']


class Averaged(Net):
    """Its ``train()`` reads the weight, which its forward uses in another form in evaluation."""

    def train(self, mode=True):
        super().train(mode)
        self.average = self.conv.weight.detach() * 0.5
        return self


class Freezing(Net):
    def train(self, mode=True):
        super().train(mode)
        self.conv.weight.requires_grad = False
        self.conv.requires_grad_(False)
        return self


@pytest.mark.parametrize('inputs', [None, IMAGE], ids=['guessed', 'given'])
def test_a_weight_that_train_reads(inputs):
    def forward(net, x):
        return net.norm(net.conv(x) if net.training else nn.functional.conv2d(x, net.average))

    report = convert_(Averaged(nn.BatchNorm2d(8), forward), inputs=inputs)
    assert report.skipped['conv'] == 'not only norms follow: detach uses its weight directly'
    freezing = Freezing(nn.BatchNorm2d(8), lambda net, x: net.norm(net.conv(x)))
    assert 'conv' in convert_(freezing, inputs=inputs).converted


class OwnWeight(nn.Conv2d):
    """Another tensor in the place of its weight raises an exception."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.get_parameter('weight'), self.bias)


@pytest.mark.parametrize('inputs', [None, IMAGE], ids=['guessed', 'given'])
def test_a_convolution_that_refuses_another_weight_does_not_end_the_run(inputs):
    net = Net(nn.BatchNorm2d(8), lambda net, x: net.norm(y := net.other(net.conv(x))) + y)
    net.conv, net.other = OwnWeight(3, 8, 1), nn.Conv2d(8, 8, 1)
    report = convert_(net, inputs=inputs)
    assert report.converted == []
    assert report.skipped['conv'].startswith('no norm follows: conv2d')
    assert report.skipped['other'] == 'not only norms follow: add'
    report = convert_(nn.Sequential(OwnWeight(3, 8, 1), nn.BatchNorm2d(8)), inputs=inputs)
    assert report.skipped['0'].startswith('OwnWeight: its forward accepts its own weight only (AttributeError')


class Styled(nn.Conv2d):
    def forward(self, x, style=None):
        weight = self.weight if style is None else self.weight * style
        return nn.functional.conv2d(x, weight, self.bias)


def test_a_convolution_with_options_that_ran_alone():
    net = Net(nn.BatchNorm2d(8), lambda net, pair: net.norm(net.conv(pair['image'], pair['style'])))
    del net.other
    net.conv = Styled(3, 8, 1)
    assert convert_(net).skipped['conv'].startswith('it ran alone only, without the optional arguments')
    report = convert_(net, inputs=({'image': IMAGE, 'style': torch.ones(8, 3, 1, 1)},))
    assert report.skipped['conv'] == 'Styled: weight also read by mul()'


def test_a_network_that_does_not_run_on_an_image_causes_a_warning():
    net = Net(nn.BatchNorm2d(8), lambda net, pair: net.norm(net.conv(pair['image'])))
    del net.other
    with pytest.warns(UserWarning, match='does not run on an image. Parts of it ran alone'):
        assert convert_(copy.deepcopy(net)).unseen == ['conv']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert convert_(net, inputs=({'image': IMAGE},)).converted == ['conv']


@pytest.mark.parametrize('size', [28, 32, 224])
def test_a_tensor_that_is_a_plain_attribute_and_images_of_one_size(size):
    def forward(net, x):
        return net.linear(net.norm(net.conv(x - net.mean)).flatten(1))

    net = Net(nn.BatchNorm2d(8), forward)
    net.mean, net.linear = torch.zeros(1, 3, 1, 1), nn.Linear(8 * size**2, 2, device='meta')
    del net.other
    report = convert_(net)
    assert (report.converted, report.unseen) == (['conv'], [])


class EvalBatchNorm(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize('inputs', [None, IMAGE], ids=['guessed', 'given'])
def test_a_norm_that_stays_and_has_fixed_statistics(inputs):
    report = convert_(nn.Sequential(nn.Conv2d(3, 8, 1), EvalBatchNorm(8)), inputs=inputs)
    assert report.skipped['0'].endswith('EvalBatchNorm with fixed statistics')


class NormEval(Net):
    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


@pytest.mark.parametrize('inputs', [None, IMAGE], ids=['guessed', 'given'])
def test_a_norm_in_evaluation_mode_that_is_replaced(inputs):
    net = NormEval(nn.BatchNorm2d(8), lambda net, x: net.norm(net.conv(x)) + net.other(x))
    assert convert_(net, inputs=inputs).converted == ['conv']


class WithFeatures(Net):
    def extract_feat(self, x):
        return self.norm(self.conv(x))


def test_a_network_with_its_own_extract_feat():
    net = WithFeatures(nn.BatchNorm2d(8), lambda net, x: net.extract_feat(x) + net.conv(x))
    assert convert_(net).skipped['conv'] == 'not only norms follow: add'


def test_backward_hooks():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    calls = []
    net[0].register_full_backward_hook(lambda *_: calls.append('backward'))
    net[0].register_full_backward_pre_hook(lambda *_: calls.append('before'))
    assert convert_(net).converted == ['0']
    net(IMAGE).sum().backward()
    assert calls == ['before', 'backward']


@pytest.mark.skipif(not hasattr(getattr(torch, 'compiler', None), 'set_stance'),
                    reason='torch < 2.6 cannot switch the compiler off')
@pytest.mark.parametrize('inputs', [None, IMAGE], ids=['guessed', 'given'])
def test_a_network_that_is_compiled_already(inputs):
    net = Net(nn.BatchNorm2d(8), lambda net, x: net.norm(net.conv(x)) + net.other(x))
    compiled = torch.compile(net, backend='eager')
    report = convert_(compiled, inputs=inputs)
    assert [*report.converted, *report.skipped] == ['_orig_mod.conv', '_orig_mod.other']
    image = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(compiled(image), net(image))


def test_modules_in_a_dict_are_named():
    net = Net(nn.BatchNorm2d(8), lambda net, x: net.norm(net.conv(x)))
    net.teachers = {'a': [nn.Conv2d(3, 8, 1)]}
    assert convert_(net).skipped['teachers'] == 'not a registered submodule'


def test_the_name_of_a_network_that_shares_a_weight():
    net = Net(nn.BatchNorm2d(8), lambda net, x: net.norm(net.conv(x)))
    net.weight = net.conv.weight
    assert convert_(net).skipped['conv'] == 'its weight is also that of the network itself'

"""Networks in which a norm follows a convolution, and something else uses its output, its weight or the norm."""

from __future__ import annotations

import copy
import random
import warnings

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

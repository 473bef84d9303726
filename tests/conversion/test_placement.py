from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmws import convert_
from mmws.conversion.placement import find_placement


class Net(nn.Module):
    """A network with conv1, norm1, and the forward of a test."""

    def __init__(self, forward, **parts: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        for name, part in parts.items():
            self.add_module(name, part)
        self.steps = forward

    def forward(self, x):
        return self.steps(self, x)


def reasons(model: nn.Module) -> dict[str, str]:
    names = {module: name for name, module in model.named_modules()}
    return {names[conv]: decision.reason for conv, decision in find_placement(model).decisions.items()}


PLAIN = 'no norm follows: '


@pytest.mark.parametrize(('forward', 'reason'), [
    (lambda net, x: net.norm1(net.conv1(x)), ''),
    (lambda net, x: functional.batch_norm(net.conv1(x), torch.zeros(4), torch.ones(4), training=net.training), ''),
    (lambda net, x: functional.batch_norm(net.conv1(x), torch.zeros(4), torch.ones(4)),
     PLAIN + 'batch_norm with fixed statistics'),
    (lambda net, x: functional.instance_norm(net.conv1(x)), ''),
    (lambda net, x: (y := net.conv1(x), net.norm1(y)), 'not only norms follow: the output leaves the network'),
    (lambda net, x: {'raw': (y := net.conv1(x)), 'normal': net.norm1(y)},
     'not only norms follow: the output leaves the network'),
    (lambda net, x: net.norm1(y := net.conv1(x)) * x.mean().type_as(y), ''),
    (lambda net, x: net.norm1(net.conv1(x).double().half().to(x)), ''),
    (lambda net, x: net.norm1(y := net.conv1(x)) + (y.mean() if net.training and torch.is_grad_enabled() else 0),
     'not only norms follow: mean'),
    (lambda net, x: net.norm1(net.conv1(x).contiguous()), ''),
    (lambda net, x: net.norm1(input=net.conv1(x)), ''),
    (lambda net, x: net.norm1(net.conv1(x).relu()), PLAIN + 'relu'),
    (lambda net, x: net.conv1(net.norm1(x.repeat(1, 2, 1, 1)[:, :4])[:, :3]), PLAIN + 'the output leaves the network'),
    (lambda net, x: (y := net.conv1(x)) + net.norm1(y), 'not only norms follow: add'),
    (lambda net, x: net.norm1(net.conv1(x) if net.training else functional.relu(net.conv1(x))),
     'not only norms follow: relu'),
    (lambda net, x: net.norm1(functional.conv2d(x, net.conv1.weight)),
     PLAIN + 'conv2d uses its weight directly'),
    (lambda net, x: net.norm1(functional.conv2d(input=x, weight=net.conv1.weight)),
     PLAIN + 'conv2d uses its weight directly'),
    (lambda net, x: net.norm1(net.conv1(x) + torch.zeros_like(net.conv1(x))), PLAIN + 'add'),
    (lambda net, x: checkpoint(lambda y: net.norm1(net.conv1(y)), x, use_reentrant=False), ''),
], ids=range(19))
def test_the_consumers_decide(forward, reason):
    assert reasons(Net(forward)) == {'conv1': reason}


class KeywordNorm(nn.BatchNorm2d):
    def forward(self, *, features):
        return super().forward(features)


@pytest.mark.parametrize('inputs', [None, torch.randn(2, 3, 4, 4)], ids=['guessed', 'given'])
def test_a_norm_that_takes_keywords_only(inputs):
    net = Net(lambda net, x: net.own(features=net.conv1(x)), own=KeywordNorm(4))
    report = convert_(net, inputs=inputs)
    assert (report.converted, report.skipped) == (['conv1'], {'own': 'KeywordNorm is an unknown subclass of BatchNorm'})


def test_a_write_into_another_tensor_is_a_consumer():
    def forward(net, x):
        out = torch.zeros(2, 4, *x.shape[2:])
        out[:] = net.conv1(x)
        return net.norm1(out)

    assert reasons(Net(forward)) == {'conv1': PLAIN + '__setitem__'}


def test_norms_far_from_their_convs_in_the_tree():
    convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
    norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(net, x):
        x = net.norm1(net.conv1(x))
        for conv, norm in zip(net.convs, net.norms):
            x = norm(conv(x))
        return x

    assert set(reasons(Net(forward, convs=convs, norms=norms)).values()) == {''}


def test_a_conv_with_several_norms_and_a_norm_with_two_convs():
    def forward(net, x):
        return [norm(net.conv1(x)) for norm in net.levels], net.norm1(net.conv1(x)), net.norm1(net.conv2(x))

    net = Net(forward, conv2=nn.Conv2d(3, 4, 1), levels=nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2)))
    decisions = find_placement(net).decisions
    assert decisions[net.conv1].norms == [*net.levels, net.norm1]
    assert decisions[net.conv2].norms == [net.norm1]
    assert all(decision.ran and not decision.reason for decision in decisions.values())


def test_heads_run_on_the_features_of_a_detector_and_parts_of_heads_alone():
    class Head(nn.Module):
        def __init__(self, usable):
            super().__init__()
            self.usable = usable
            self.tower = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.Identity(), nn.BatchNorm2d(4))])
            self.predict = nn.Conv2d(4, 1, 1)
            self.norm = nn.BatchNorm2d(1)  # registered next, but not the consumer

        def forward(self, feats, proposals=None):
            if not self.usable:
                raise ValueError('needs proposals')
            return [self.predict(self.tower[0](feat)) for feat in feats]

    class Detector(Net):
        data_preprocessor = None

        def extract_feat(self, x):
            return (self.norm1(self.conv1(x)),)

    decisions = find_placement(detector := Detector(None, head=Head(True), roi_head=Head(False))).decisions
    assert decisions[detector.head.predict].reason == PLAIN + 'the output leaves the network'
    assert not decisions[detector.head.tower[0][0]].reason
    assert decisions[detector.roi_head.tower[0][0]].ran  # alone
    assert not decisions[detector.roi_head.predict].ran
    assert not decisions[detector.roi_head.predict].reason  # by the module tree


@pytest.mark.parametrize('conv', [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_1d_2d_and_3d(conv):
    assert set(reasons(nn.Sequential(conv(5, 4, 1), nn.Identity(), nn.GroupNorm(2, 4))).values()) == {''}


def test_the_model_itself_does_not_run_or_change():
    def forward(net, x):
        net.calls += 1
        return net.norm1(net.conv1(x))

    net = Net(forward)
    net.calls = 0
    net.conv1.register_forward_hook(lambda *_: pytest.fail('a hook of the user ran'))
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    first = reasons(net)
    assert reasons(net) == first == {'conv1': ''}
    assert net.calls == 0
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_module_tree_decides_if_nothing_runs():
    class Uncopyable(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError('no copies')

    net = Uncopyable(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    for model in (net, nn.ModuleList(net)):
        decision = find_placement(model).decisions[net[0]]
        assert (decision.ran, decision.reason) == (False, '')


def test_norms_of_pooled_features_get_groups_of_several_channels():
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 32, 1),
                        nn.BatchNorm2d(32), nn.Flatten(), nn.BatchNorm1d(32))
    assert find_placement(net).pointwise == {net[4], net[6]}
    convert_(net)
    assert [net[i].num_groups for i in (1, 4, 6)] == [32, 4, 4]
    assert net(torch.randn(1, 3, 8, 8)).abs().sum() > 0


class Unusual(nn.Module):
    """Its attributes have the names that the dry run reads, and other meanings."""

    def __init__(self, **attributes):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(3, 8, 3)  # not in the order of the forward pass
        vars(self).update(attributes)

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize('attributes', [
    {'img_size': None}, {'img_size': 'large'}, {'img_size': [None]}, {'in_channels': [None, 64]},
    {'in_channels': 'all'}, {'extract_feat': 3}], ids=str)
def test_unusual_attributes(attributes):
    assert convert_(Unusual(**attributes)).converted == ['conv']


class RaisingProperty(Unusual):
    @property
    def extract_feat(self):
        raise RuntimeError


def test_the_module_tree_decides_if_the_network_cannot_be_inspected():
    report = convert_(nn.Sequential(RaisingProperty(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)))
    assert report.converted == ['1']
    assert report.unseen == ['0.conv', '1']


class OwnConv(nn.Module):
    """A convolution of another library."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))

    def forward(self, x):
        return functional.conv2d(x, self.weight)


def test_a_convolution_without_in_channels():
    report = convert_(nn.Sequential(OwnConv(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
    assert report.converted == ['0', '2']
    assert not report.unseen

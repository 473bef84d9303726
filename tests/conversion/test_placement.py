import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmws import convert_
from mmws.conversion.placement import find_placement


class Net(nn.Module):
    """A net with conv1 before norm1, and what a test says between."""

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
    return {names[conv]: verdict.reason for conv, verdict in find_placement(model).convs.items()}


PLAIN = 'no norm takes its output: '


@pytest.mark.parametrize(('forward', 'reason'), [
    (lambda net, x: net.norm1(net.conv1(x)), ''),
    (lambda net, x: functional.batch_norm(net.conv1(x), torch.zeros(4), torch.ones(4)), ''),
    (lambda net, x: net.norm1(net.conv1(x).contiguous()), ''),
    (lambda net, x: net.norm1(net.conv1(x).relu()), PLAIN + 'relu'),
    (lambda net, x: net.conv1(net.norm1(x.repeat(1, 2, 1, 1)[:, :4])[:, :3]), PLAIN + 'it leaves the network'),
    (lambda net, x: (y := net.conv1(x)) + net.norm1(y), 'not only norms take its output: add'),
    (lambda net, x: net.norm1(net.conv1(x) if net.training else functional.relu(net.conv1(x))),
     'not only norms take its output: relu'),
    (lambda net, x: net.norm1(functional.conv2d(x, net.conv1.weight)),
     PLAIN + 'its weight goes to conv2d outside of it'),
    (lambda net, x: net.norm1(functional.conv2d(input=x, weight=net.conv1.weight)),
     PLAIN + 'its weight goes to conv2d outside of it'),
    (lambda net, x: net.norm1(net.conv1(x) + torch.zeros_like(net.conv1(x))), PLAIN + 'add'),
    (lambda net, x: checkpoint(lambda y: net.norm1(net.conv1(y)), x, use_reentrant=False), ''),
], ids=range(11))
def test_what_takes_the_output_decides(forward, reason):
    assert reasons(Net(forward)) == {'conv1': reason}


def test_what_is_written_into_another_tensor_is_taken():
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
        for conv, norm in zip(net.convs, net.norms, strict=True):
            x = norm(conv(x))
        return x

    assert set(reasons(Net(forward, convs=convs, norms=norms)).values()) == {''}


def test_a_conv_shared_by_levels_and_a_norm_fed_by_two_convs():
    def forward(net, x):
        return [norm(net.conv1(x)) for norm in net.levels], net.norm1(net.conv1(x)), net.norm1(net.conv2(x))

    net = Net(forward, conv2=nn.Conv2d(3, 4, 1), levels=nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2)))
    placement = find_placement(net).convs
    assert placement[net.conv1].norms == [*net.levels, net.norm1]
    assert placement[net.conv2].norms == [net.norm1]
    assert all(verdict.ran and not verdict.reason for verdict in placement.values())


def test_a_detectors_heads_run_on_its_features_and_what_cannot_run_as_a_whole_runs_in_parts():
    class Head(nn.Module):
        def __init__(self, usable):
            super().__init__()
            self.usable = usable
            self.tower = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.Identity(), nn.BatchNorm2d(4))])
            self.predict = nn.Conv2d(4, 1, 1)
            self.norm = nn.BatchNorm2d(1)  # registered after, of no concern to it

        def forward(self, feats, proposals=None):
            if not self.usable:
                raise ValueError('needs proposals')
            return [self.predict(self.tower[0](feat)) for feat in feats]

    class Detector(Net):
        def extract_feat(self, x):
            return (self.norm1(self.conv1(x)),)

    verdicts = find_placement(detector := Detector(None, head=Head(True), roi_head=Head(False))).convs
    assert verdicts[detector.head.predict].reason == PLAIN + 'it leaves the network'
    assert not verdicts[detector.head.tower[0][0]].reason
    assert verdicts[detector.roi_head.tower[0][0]].ran  # on its own
    assert not verdicts[detector.roi_head.predict].ran
    assert not verdicts[detector.roi_head.predict].reason  # as far as the tree tells


@pytest.mark.parametrize('conv', [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_in_every_dimension(conv):
    assert set(reasons(nn.Sequential(conv(5, 4, 1), nn.Identity(), nn.GroupNorm(2, 4))).values()) == {''}


def test_the_model_itself_does_not_run_and_stays_as_it_is():
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


def test_where_nothing_runs_the_tree_decides():
    class Uncopyable(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError('no copies')

    net = Uncopyable(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    for model in (net, nn.ModuleList(net)):
        verdict = find_placement(model).convs[net[0]]
        assert (verdict.ran, verdict.reason) == (False, '')


def test_norms_of_pooled_features_are_named_and_get_groups_of_several_channels():
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 32, 1),
                        nn.BatchNorm2d(32), nn.Flatten(), nn.BatchNorm1d(32))
    assert find_placement(net).pointwise == {net[4], net[6]}
    convert_(net)
    assert [net[i].num_groups for i in (1, 4, 6)] == [32, 4, 4]
    assert net(torch.randn(1, 3, 8, 8)).abs().sum() > 0

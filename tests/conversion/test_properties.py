"""Properties of conversion and folding on random networks. Their steps define the consumers of each output.

The networks are float64: whether two gradients agree does not depend on how close a float32 variance is to 0.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmws import convert_, fold
from mmws.layers.conv import WeightStandardized
from tests.helpers.versions import HALF, ONE_GRAPH

pytestmark = pytest.mark.filterwarnings('ignore:nothing was standardized')
CHANNELS = 8
TRANSPARENT = ('identity', 'contiguous')

convs = st.builds(dict, kernel_size=st.sampled_from([1, 3]), groups=st.sampled_from([1, 2, CHANNELS]),
                  dilation=st.sampled_from([1, 2]), stride=st.sampled_from([1, 1, 2]), bias=st.booleans())
chains = st.lists(st.sampled_from(['conv', 'conv', 'norm', 'norm', 'relu', 'again', 'save', 'add', *TRANSPARENT]),
                  min_size=2, max_size=14)


class Chain(nn.Module):
    """Runs ``steps`` in order: modules by name, and functions.

    'save' stores the current output, and 'add' adds the stored one, which is then a second consumer.
    """

    def __init__(self, steps: list[str], modules: dict[str, nn.Module], nest: bool, backwards: bool) -> None:
        super().__init__()
        self.steps = steps
        names = sorted(modules, reverse=backwards)
        self.parts = nn.ModuleDict({name: nn.Sequential(modules[name]) if nest else modules[name] for name in names})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        saved = None
        for step in self.steps:
            if step == 'save':
                saved = x
            elif step == 'add':
                x = x if saved is None else x + nn.functional.interpolate(saved, x.shape[2:])
            else:
                x = x.contiguous() if step == 'contiguous' else self.parts[step](x)
        return x


@st.composite
def networks(draw: st.DrawFn) -> Chain:
    modules: dict[str, nn.Module] = {}
    steps: list[str] = []
    for number, kind in enumerate(draw(chains)):
        earlier = [step for step in steps if step.startswith('conv')]
        if kind == 'again' and earlier:
            steps.append(draw(st.sampled_from(earlier)))
        elif kind == 'conv':
            options = draw(convs)
            modules[f'conv{number}'] = nn.Conv2d(
                CHANNELS, CHANNELS, padding=options['dilation'] * (options['kernel_size'] // 2), **options)
            steps.append(f'conv{number}')
        elif kind in ('norm', 'relu', 'identity'):
            modules[f'{kind}{number}'] = {'norm': lambda: nn.BatchNorm2d(CHANNELS), 'relu': nn.ReLU,
                                          'identity': nn.Identity}[kind]()
            steps.append(f'{kind}{number}')
        elif kind in ('save', 'add', 'contiguous'):
            steps.append(kind)
    return Chain(steps, modules, draw(st.booleans()), draw(st.booleans())).double()


def followed_by_norms(net: Chain) -> set[str]:
    """Return the convolutions that only norms follow, by the order of the steps."""
    follows: dict[str, list[bool]] = {}
    for place, step in enumerate(net.steps):
        if step.startswith('conv'):
            follows.setdefault(step, []).append(_norm_follows(net.steps, place + 1))
    return {name for name, each in follows.items() if all(each)}


def _norm_follows(steps: list[str], place: int) -> bool:
    saved = False
    for index, step in enumerate(steps[place:], place):
        if step == 'save':
            following = steps[index + 1:]
            until = following.index('save') if 'save' in following else len(following)
            saved = saved or 'add' in following[:until]
        elif step == 'add':
            if 'save' in steps[:index]:
                return False
        elif not step.startswith(TRANSPARENT):
            return step.startswith('norm') and not saved
    return False


def x() -> torch.Tensor:
    return torch.randn(2, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def convert(net: nn.Module) -> list[str]:
    report = convert_(net)
    return [name.split('.')[1] for name in report.converted]


@given(networks())
def test_exactly_the_convolutions_before_norms_are_converted(net):
    expected = {name for name in followed_by_norms(net)
                if next(net.parts[name].parameters())[0].numel() > 1}
    assert set(convert(net)) == expected


@given(networks())
def test_parameters_stay_the_same_objects_and_a_second_conversion_changes_nothing(net):
    before = {id(parameter) for parameter in net.parameters()}
    convert(net)
    assert {id(parameter) for parameter in net.parameters()} == before
    out, keys = net(x()), list(net.state_dict())
    assert convert(net) == []
    assert torch.equal(net(x()), out)
    assert list(net.state_dict()) == keys


@given(networks())
def test_keys_do_not_depend_on_the_order_of_modules(net):
    backwards = copy.deepcopy(net)
    backwards.parts = nn.ModuleDict(dict(reversed(list(backwards.parts.items()))))
    assert sorted(convert(net)) == sorted(convert(backwards))
    assert net.state_dict().keys() == backwards.state_dict().keys()


@given(networks())
def test_a_folded_network_has_the_same_output(net):
    convert(net)
    folded = fold(net.eval())
    assert not any(isinstance(module, WeightStandardized) for module in folded.modules())
    torch.testing.assert_close(folded(x()), net(x()))


@pytest.mark.parametrize('dtype', [HALF, torch.bfloat16])
@settings(max_examples=15)
@given(net=networks())
def test_in_half_precision_the_folded_network_has_the_same_output(dtype, net):
    convert(net)
    net.eval().to(dtype)
    out = net(x().to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()
    torch.testing.assert_close(fold(net)(x().to(dtype)), out)


def saved_and_loaded(net):
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def averaged(net):
    average = ExponentialMovingAverage(net, momentum=0.5)
    average.update_parameters(net)
    return average.module.requires_grad_()


WAYS = {
    'deepcopy': copy.deepcopy,
    'pickle': lambda net: pickle.loads(pickle.dumps(net)),
    'save': saved_and_loaded,
    'to and back': lambda net: net.to(torch.float32).to(torch.float64),  # the initial weights are float32 numbers
    'half and back': lambda net: copy.deepcopy(net).bfloat16().double().load_state_dict(net.state_dict()) and net,
    'train and eval': lambda net: net.train().eval().train(),
    'moving average': averaged,
    'hooked': lambda net: net.register_forward_hook(lambda *_: None) and net,
    'checkpointed': lambda net: lambda image: checkpoint(net, image, use_reentrant=False),
    'compiled': lambda net: torch._dynamo.reset() or torch.compile(net, backend='eager', fullgraph=ONE_GRAPH),
}


def gradients(run, parameters):
    return torch.autograd.grad(run(x()).square().sum(), list(parameters), allow_unused=True)


@pytest.mark.parametrize('way', WAYS)
def test_a_converted_network_survives(way):
    @settings(max_examples=4 if way == 'compiled' else 15)
    @given(networks())
    def survives(net):
        convert(net)
        expected = net(x())
        again = WAYS[way](net)
        torch.testing.assert_close(again(x()), expected)
        if expected.requires_grad:
            parameters = again.parameters() if isinstance(again, nn.Module) else net.parameters()
            torch.testing.assert_close(gradients(again, parameters), gradients(net, net.parameters()))

    survives()

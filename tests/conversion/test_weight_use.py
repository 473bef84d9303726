"""Convolutions of any class: the dry run shows whether the standardized weight is all that reaches the convolution."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import warnings
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from mmws import WSError, convert_, fold, standardize_weight
from tests.helpers.versions import ONE_GRAPH


class Subclass(nn.Conv2d):
    pass


class SamePadding(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class OtherConvForward(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return functional.conv2d(input, weight=weight, bias=bias, stride=self.stride)


class Filters(nn.Module):
    """A module that is no convolution by its class or name."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4, 3, 3))

    def forward(self, x):
        return functional.conv2d(x, self.weight.to(x.dtype))


class Branches(nn.Conv2d):
    """The same weight twice, in training only; the other branch is for evaluation."""

    def forward(self, x):
        if self.training:
            return torch.maximum(super().forward(x), super().forward(x.flip(3)))
        return super().forward(x)


class TwiceInTraining(nn.Conv2d):
    def forward(self, x):
        return [super().forward(x), super().forward(x.flip(3))] if self.training else [super().forward(x)]


class Transposed(nn.ConvTranspose2d):
    pass


class Causal(nn.Conv1d):
    def forward(self, x):
        return super().forward(functional.pad(x, (self.kernel_size[0] - 1, 0)))


class TransposedByHand(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8 // groups, 3, 3))
        vars(self).update({'groups': groups} if groups > 1 else {})

    def forward(self, x):
        return functional.conv_transpose2d(x, self.weight, groups=getattr(self, 'groups', 1))


class GroupsOfTheClass(TransposedByHand):
    groups = 2

    def __init__(self):
        super().__init__(groups=2)
        del self.__dict__['groups']


class InPlace(nn.Conv2d):
    def forward(self, x):
        return super().forward(functional.relu_(x))


class StrictAttributes(nn.Conv2d):
    finished = False

    def __init__(self, *args):
        super().__init__(*args)
        self.finished = True

    def __setattr__(self, name, value):
        if self.finished and name not in ('training', 'weight', 'bias'):
            raise AttributeError(name)
        super().__setattr__(name, value)


def formula(conv):
    """Standardize the weight of ``conv`` in plain torch."""
    def swapped(weight):  # a filter of a transposed convolution is a column
        if not isinstance(conv, (nn.ConvTranspose2d, TransposedByHand)):
            return weight
        return weight.unflatten(0, (getattr(conv, 'groups', 1), -1)).transpose(1, 2).flatten(0, 1)

    rows = swapped(conv.weight)
    filters = rows.flatten(1)
    standardized = (filters - filters.mean(1, keepdim=True)) / (filters.std(1, keepdim=True) + 1e-5)
    return swapped(standardized.view_as(rows))


@pytest.mark.parametrize(('conv', 'shape'), [
    (Subclass(4, 8, 3), (2, 4, 7, 7)), (Subclass(4, 8, 3, groups=2, padding='same'), (2, 4, 7, 7)),
    (SamePadding(4, 8, 3), (2, 4, 7, 7)), (OtherConvForward(4, 8, 3), (2, 4, 7, 7)), (Filters(), (2, 4, 7, 7)),
    (Transposed(4, 8, 2, stride=2, groups=2), (2, 4, 7, 7)), (Causal(4, 8, 3), (2, 4, 9)),
    (TransposedByHand(), (2, 4, 7, 7)), (TransposedByHand(groups=2), (2, 4, 7, 7)),
    (GroupsOfTheClass(), (2, 4, 7, 7)), (StrictAttributes(4, 8, 3), (2, 4, 7, 7)),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else '')
def test_a_class_that_hands_its_weight_to_a_convolution_is_standardized(conv, shape):
    norm = (nn.BatchNorm1d if len(shape) == 3 else nn.BatchNorm2d)(8)
    conv.double()
    plain, weight = copy.deepcopy(conv), conv.weight
    net = nn.Sequential(conv, norm)
    report = convert_(net)
    assert (report.converted, report.skipped) == (['0'], {})
    assert conv.weight is weight
    assert type(conv).__name__ == f'{type(plain).__name__}WS'
    assert isinstance(conv, type(plain))
    x = torch.randn(shape, dtype=torch.double)
    expected = torch.func.functional_call(plain, {'weight': formula(plain)}, (x, ))
    for replica in (conv, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert type(replica) is type(conv)
        torch.testing.assert_close(replica(x), expected)
    conv(x).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(weight.grad, plain.weight.grad)
    folded = fold(net.double().eval())
    assert type(folded[0]) is type(plain)
    torch.testing.assert_close(folded(x), net(x))
    assert repr(folded[0]) == repr(plain)
    inner = plain.extra_repr()
    assert repr(conv) == f'{type(plain).__name__}WS({inner}{", " if inner else ""}eps=1e-05)'
    assert convert_(net.train()).converted == []  # a second conversion changes nothing


def test_the_layers_compile_whole_and_their_folded_form_can_be_scripted():
    net = nn.Sequential(SamePadding(4, 8, 3), nn.BatchNorm2d(8))
    convert_(net)
    x = torch.randn(2, 4, 7, 7)

    def expected():
        plain = SamePadding(4, 8, 3)
        plain.load_state_dict({**net[0].state_dict(), 'weight': standardize_weight(net[0].weight)})
        return net[1](plain(x))

    compiled = torch.compile(net, fullgraph=ONE_GRAPH, backend='aot_eager')
    torch.testing.assert_close(compiled(x), expected())
    net[0].weight.data[0, 0].neg_()
    torch.testing.assert_close(compiled(x), expected())
    folded = fold(net.eval())
    torch.testing.assert_close(torch.jit.script(folded)(x), expected())


class Mul(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight * 2)


class Penalty(nn.Conv2d):
    def forward(self, x):
        self.penalty = self.weight.norm()
        return super().forward(x)


class Masked(nn.Conv2d):
    def forward(self, x):
        self.weight.data *= 1
        return super().forward(x)


class Alias(nn.Conv2d):
    """Not seen by a test of the names that the forward reads."""

    def __init__(self, *args):
        super().__init__(*args)
        self.filters_ = self.weight

    def forward(self, x):
        return functional.conv2d(x, self.filters_)


class Counter(nn.Conv2d):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Eps(nn.Conv2d):
    eps = 3


class Gain(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Unfold(nn.Conv2d):
    def forward(self, x):
        columns = functional.unfold(x, self.kernel_size)
        rows = self.weight.flatten(1) @ columns
        return rows.unflatten(2, (x.shape[2] - 2, x.shape[3] - 2))


class OtherGroups(nn.Conv2d):
    def forward(self, x):
        return functional.conv_transpose2d(x, self.weight)


class Average(nn.Conv2d):
    """In evaluation it uses an average of its weight."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer('average', self.weight.detach().clone())

    def forward(self, x):
        return functional.conv2d(x, self.weight if self.training else self.average)


class Fused(nn.Conv2d):
    """It keeps a tensor that it makes from its weight when the mode changes."""

    fused = None

    def train(self, mode=True):
        super().train(mode)
        self.fused = None if mode else self.weight.detach() * 1
        return self

    def forward(self, x):
        return functional.conv2d(x, self.weight if self.fused is None else self.fused)


class NeedsGradient(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight * 2 if x.requires_grad else self.weight)


class AsParameter(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight, self.bias if self.weight.requires_grad else None)


class AsLeaf(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight, self.bias if self.weight.is_leaf else None)


class CloneByKeyword(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x / torch.clone(input=self.weight).norm(), self.weight)


class Operator(nn.Conv2d):
    def forward(self, x):
        return torch.ops.aten.convolution.default(x, self.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


class Condition(nn.Module):
    """A convolution that computes its filters, by its name."""

    def __init__(self, *args):
        super().__init__()
        self.out_channels, self.weight = 8, nn.Parameter(torch.ones(8, 27))

    def forward(self, x):
        return functional.conv2d(x, self.weight.view(8, 3, 3, 3))


Condition.__name__ = 'ConvCondition'


class Final(nn.Conv2d):
    def __init_subclass__(cls):
        raise TypeError('no subclasses')


class MaskedCopy(nn.Conv2d):
    def forward(self, x):
        weight = self.weight.clone()
        weight[:, :, 1, 1] = 0
        return functional.conv2d(x, weight)


class MaskedInPlace(nn.Conv2d):
    def forward(self, x):
        with torch.no_grad():
            self.weight[:, :, 1, 1] = 0
        return super().forward(x)


class Binary(nn.Conv2d):
    def forward(self, x):
        self.weight.data = torch.ones(8, 3, 3, 3, device=x.device)
        return super().forward(x)


class Compared(nn.Conv2d):
    def forward(self, x):
        return super().forward(x if self.weight.numel() and torch.equal(self.weight, self.weight) else -x)


class InTraining(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight * 2 if self.training else self.weight)


class IfItTrains(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight * 2 if self.weight.requires_grad else self.weight)


class WithGradients(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight * 2 if torch.is_grad_enabled() else self.weight)


class Forgets(nn.Conv2d):
    def forward(self, x):
        vars(self).pop('found', None)
        return super().forward(x)


class OwnState(nn.Conv2d):
    def __getstate__(self):
        return {**vars(self)}


class Gram(nn.Conv2d):
    """Its weight is also the input of a convolution."""

    def forward(self, x):
        functional.conv2d(self.weight, self.weight)
        return super().forward(x)


class OnlyTraining(nn.Conv2d):
    def forward(self, x):
        if not self.training:
            raise NotImplementedError
        return super().forward(x)


KEPT, KEPT_WEAKLY = {}, weakref.WeakKeyDictionary()


class KeepsItself(nn.Conv2d):
    """State by module, outside of it."""

    def forward(self, x):
        KEPT[self] = KEPT.get(self, 0) + 1
        return super().forward(x)


class KeepsItselfWeakly(nn.Conv2d):
    def forward(self, x):
        KEPT_WEAKLY[self] = KEPT_WEAKLY.get(self, 0) + 1
        return super().forward(x)


@pytest.mark.parametrize(('conv', 'reason'), [
    (Gram(3, 8, 3), 'Gram: weight also read by conv2d()'),
    (OnlyTraining(3, 8, 3), 'OnlyTraining: it ran in training mode only'),
    (KeepsItself(3, 8, 3), 'KeepsItself: its forward keeps a reference to the module elsewhere'),
    (KeepsItselfWeakly(3, 8, 3), 'KeepsItselfWeakly: its forward keeps a reference to the module elsewhere'),
    (Mul(3, 8, 3), 'Mul: weight read by mul()'), (Penalty(3, 8, 3), 'Penalty: weight also read by norm()'),
    (Masked(3, 8, 3), 'Masked: weight also read by .data, .data ='),
    (Alias(3, 8, 3), 'Alias: weight read by conv2d() under another name'),
    (Counter(3, 8, 3), 'Counter: its forward assigns calls'), (Eps(3, 8, 3), 'Eps: it has its own eps'),
    (Gain(3, 8, 3), 'no norm follows: mul'), (Unfold(3, 8, 3), 'Unfold: weight read by flatten()'),
    (Branches(3, 8, 3), 'not only norms follow: maximum'),
    (OtherGroups(8, 4, 3, groups=2), 'OtherGroups: its weight has another layout in conv_transpose2d'),
    (Average(3, 8, 3), 'Average: in evaluation mode no convolution function got its weight'),
    (Fused(3, 8, 3), 'not only norms follow: detach uses its weight directly'),
    (NeedsGradient(3, 8, 3), 'NeedsGradient: weight also read by mul()'),
    (AsParameter(3, 8, 3), 'AsParameter: weight also read by .requires_grad'),
    (AsLeaf(3, 8, 3), 'AsLeaf: weight also read by .is_leaf'),
    (CloneByKeyword(3, 8, 3), 'CloneByKeyword: weight also read by norm()'),
    (Operator(3, 8, 3), 'Operator: weight read by convolution()'),
    (Condition(3, 8, 3), 'ConvCondition: its weight has 2 dimensions, so its rows are no filters'),
    (Final(3, 8, 3), "Final: it cannot have a standardized subclass (TypeError: no subclasses)"),
    (MaskedCopy(3, 8, 3), 'MaskedCopy: weight also read by __setitem__()'),
    (MaskedInPlace(3, 8, 3), 'MaskedInPlace: weight also read by __setitem__()'),
    (Binary(3, 8, 3), 'Binary: weight also read by .data ='),
    (InTraining(3, 8, 3), 'InTraining: weight also read by mul()'),
    (IfItTrains(3, 8, 3), 'IfItTrains: weight read by .requires_grad, mul()'),
    (WithGradients(3, 8, 3), 'WithGradients: weight also read by mul()'),
    (OwnState(3, 8, 3), 'OwnState: it has its own __getstate__'),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else '')
def test_a_class_that_does_anything_else_stays_plain_and_is_named(conv, reason):
    kind = type(conv)
    net = nn.Sequential(conv, nn.BatchNorm2d(8))
    with pytest.warns(UserWarning, match=re.escape(f'nothing was standardized in Sequential: {reason}')):
        report = convert_(net)
    assert report.skipped == {'0': reason}
    assert type(conv) is kind


class NeedsMore(nn.Conv2d):
    def forward(self, x, scale):
        return super().forward(x) * scale['factor']


def test_a_class_that_did_not_run_stays_plain_with_the_first_error():
    with pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(nn.Sequential(NeedsMore(3, 8, 3), nn.BatchNorm2d(8)))
    assert re.fullmatch(r"NeedsMore: it did not run \([A-Z]\w+Error: .+\), so the use of its weight is unknown; give "
                        "convert_ `inputs` that reach it", report.skipped['0'])


class Cycle(nn.Conv2d):
    """Its forward makes an object that refers to itself and to the module."""

    def forward(self, x):
        def bias(steps):
            return bias(steps - 1) if steps else self.bias

        return functional.conv2d(x, self.weight, bias(2))


class Checkpointed(nn.Conv2d):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class Hooked(nn.Conv2d):
    """The gradient function of its output refers to the module."""

    def forward(self, x):
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * (self.out_channels > 0))
        return y


@pytest.mark.parametrize('kind', [Cycle, Checkpointed, Hooked])
def test_references_that_end_with_the_forward_do_not_count(kind):
    assert convert_(nn.Sequential(kind(3, 8, 3), nn.BatchNorm2d(8))).converted == ['0']


def test_a_network_with_lazy_modules_is_refused():
    convert_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2)))
    with pytest.raises(WSError, match=r'0 \(LazyConv2d\) has parameters without a shape; run the network once before'):
        convert_(nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8)))
    with pytest.warns(UserWarning, match='it has no norm'):
        convert_(nn.Sequential(nn.LazyConv2d(8, 3)))


class GroupsByKeyword(nn.ConvTranspose2d):
    def forward(self, x):
        return functional.conv_transpose2d(x, self.weight, self.bias, groups=self.groups)


def test_groups_by_keyword():
    assert convert_(nn.Sequential(GroupsByKeyword(4, 8, 2, groups=2), nn.BatchNorm2d(8))).converted == ['0']


@pytest.mark.parametrize('kind', [nn.Conv2d, Subclass])
@pytest.mark.parametrize('name', ['forward', '_conv_forward'])
def test_a_forward_set_on_the_module_itself_would_keep_the_raw_weight(kind, name):
    conv = kind(3, 8, 3)
    setattr(conv, name, getattr(conv, name))
    net = nn.Sequential(conv, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    assert convert_(net).skipped == {'0': f'{kind.__name__}: it has its own {name}'}


def test_an_attribute_that_the_forward_deletes_or_the_weight_has():
    conv, other = Forgets(3, 8, 3), Subclass(8, 8, 3)
    conv.found, other.weight.scale = 1, 2
    net = nn.Sequential(conv, nn.BatchNorm2d(8), other, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    assert convert_(net).skipped == {'0': 'Forgets: its forward assigns found',
                                     '2': 'Subclass: its weight has the attributes scale'}


def test_a_function_that_keeps_the_original_module_would_use_the_raw_weight():
    conv = Subclass(3, 8, 3)
    conv.fast = lambda x: functional.conv2d(x, conv.weight)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv, nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(self.conv(x) if self.training else conv.fast(x))

    with pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(Net(), inputs=torch.randn(2, 3, 5, 5))
    assert 'conv2d uses its weight directly' in report.skipped['conv']


@pytest.mark.parametrize('change', [
    lambda conv: prune.identity(conv, 'weight'),
    lambda conv: vars(conv).update(weight=conv._parameters.pop('weight')),  # as FSDP and DataParallel do
], ids=['pruned', 'plain attribute'])
def test_a_weight_that_becomes_a_plain_attribute_stays_standardized(change):
    net = nn.Sequential(SamePadding(3, 8, 3), nn.BatchNorm2d(8))
    assert convert_(net).converted == ['0']
    x = torch.randn(2, 3, 5, 5)
    expected = net[0](x)
    change(net[0])
    torch.testing.assert_close(net[0](x), expected)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = Keyword(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(image=x))


class Keyword(nn.Conv2d):
    def forward(self, *, image):
        return super().forward(image)


def test_a_forward_with_keywords():
    net = ByKeyword()
    assert convert_(net).converted == ['conv']
    x = torch.randn(1, 3, 5, 5)
    expected = functional.conv2d(x, standardize_weight(net.conv.weight), net.conv.bias)
    torch.testing.assert_close(net.conv(image=x), expected)
    torch.testing.assert_close(net(x), net.norm(expected))


class Scaled(nn.Module):
    """A network with a weight of three to five dimensions that is no convolution's."""

    def __init__(self, *before):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.before, self.conv, self.norm = nn.Sequential(*before), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(self.before(x))
        return self.norm(y) * self.weight + y


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize('before', [(), (Scale(), )], ids=['root', 'first'])
def test_other_weights_of_that_size_are_no_convolutions(before):
    with pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(Scaled(*before))
    assert (report.skipped, report.unseen) == ({'conv': 'not only norms follow: add'}, [])


def test_a_module_with_filters_that_does_not_run_in_the_network_stays_plain():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters, self.norm = Filters(), nn.BatchNorm2d(8)

        def forward(self, batch):
            return self.norm(self.filters(batch['image']))

    with pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(Net())
    reason = 'it ran alone only, so what follows it is unknown; give convert_ `inputs` that reach it'
    assert (report.skipped, report.unseen) == ({'filters': reason}, [])
    assert convert_(Net(), inputs=[{'image': torch.randn(2, 4, 5, 5)}]).converted == ['filters']


def test_a_module_that_never_runs_may_be_no_convolution():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    net[1].position = nn.Module()
    net[1].position.weight = nn.Parameter(torch.ones(1, 8, 4, 4))
    report = convert_(net)
    reason = 'it did not run, so it may be a convolution or not; give convert_ `inputs` that reach it'
    assert (report.skipped, report.unseen) == ({'1.position': reason}, [])


class Targets(nn.Module):
    """In training it needs targets."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(8)

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError('targets')
        found = self.conv(x)
        return [self.norm(each) for each in (found if isinstance(found, list) else [found])]


@pytest.mark.parametrize('inputs', [None, torch.randn(2, 3, 5, 5)], ids=['guessed', 'given'])
def test_a_mode_in_which_the_network_does_not_run_counts_too(inputs):
    def warned():
        message = 'the network does not run on the inputs in training mode: ValueError: targets; evaluation mode alone'
        return nullcontext() if inputs is None else pytest.warns(UserWarning, match=message)

    with warned():
        assert convert_(Targets(TwiceInTraining(3, 8, 3)), inputs=inputs).converted == ['conv']
    with warned(), pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(Targets(InTraining(3, 8, 3)), inputs=inputs)
    assert report.skipped == {'conv': 'InTraining: weight also read by mul()'}


def test_a_weight_that_the_network_reads_elsewhere_stays_plain():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(self.conv(x.to(self.conv.weight))), self.conv.weight.square().sum()

    assert convert_(Net()).skipped == {'conv': 'not only norms follow: square uses its weight directly'}


class Blur(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('kernel', torch.ones(3, 1, 3, 3) / 9)

    def forward(self, x):
        return functional.conv2d(x, self.kernel, groups=3)


def test_convolution_functions_outside_of_modules_are_named_with_their_line():
    report = convert_(nn.Sequential(Blur(), Blur(), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)))
    assert report.converted == ['2']
    line = inspect.getsourcelines(Blur.forward)[1] + 1
    where = f'{Path(__file__)}:{line} in forward'
    assert report.functions == {where: ['conv2d, weight: 0.kernel', 'conv2d, weight: 1.kernel']}
    assert f'conv2d, weight: 0.kernel, called at {where}' in str(report)
    with pytest.warns(UserWarning, match='it has no norm'):
        assert convert_(Blur()).functions == {where: ['conv2d, weight: kernel']}  # also without any convolution


class Smooths(nn.Conv2d):
    """A convolution with a second, fixed kernel."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer('kernel', torch.ones(3, 1, 3, 3) / 9)

    def forward(self, x):
        return super().forward(functional.conv2d(x, self.kernel, groups=3))


def test_a_convolution_function_with_a_buffer_inside_a_convolution_is_named():
    report = convert_(nn.Sequential(Smooths(3, 8, 3), nn.BatchNorm2d(8)))
    assert report.converted == ['0']
    assert list(report.functions.values()) == [['conv2d, weight: 0.kernel']]


def test_timms_convolutions():
    layers = pytest.importorskip('timm.layers')
    for kind, reason in ((layers.Conv2dSame, ''), (layers.ScaledStdConv2d, 'weight read by reshape()'),
                         (layers.StdConv2d, 'weight read by reshape()')):
        conv = kind(4, 8, 3, stride=2)
        plain, x = copy.deepcopy(conv), torch.randn(2, 4, 7, 7)
        report = convert_(nn.Sequential(conv, nn.BatchNorm2d(8)))
        if reason:
            assert f'{kind.__name__}: {reason}' in report.skipped['0']
            assert type(conv) is kind
        else:
            plain.weight.data = standardize_weight(plain.weight.data)
            torch.testing.assert_close(conv(x), plain(x))


def test_a_read_that_gives_no_tensor_counts():
    net = nn.Sequential(Compared(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    report = convert_(net, inputs=torch.randn(2, 3, 5, 5))
    assert report.skipped == {'0': 'Compared: weight also read by equal()'}


class Smoothed(nn.Conv2d):
    """A convolution with a second, computed kernel."""

    def forward(self, x):
        return super().forward(functional.conv2d(x, x.new_ones(3, 1, 3, 3) / 9, groups=3))


def test_a_computed_kernel_inside_a_convolution_is_named():
    report = convert_(nn.Sequential(Smoothed(3, 8, 3), nn.BatchNorm2d(8)))
    assert report.converted == ['0']
    assert list(report.functions.values()) == [['conv2d, weight: computed']]


class Kernels(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x):
        x = torch.convolution(x, self.kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        return torch.ops.aten.conv2d.default(x, self.kernel * 1)


def test_convolution_operators_outside_of_modules_are_named():
    found = convert_(nn.Sequential(Kernels(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).functions
    texts = sorted(text for texts in found.values() for text in texts)
    assert texts == ['conv2d, weight: computed', 'convolution, weight: 0.kernel']


def test_a_deformable_convolution_with_another_name_is_named():
    ops = pytest.importorskip('mmcv.ops')

    class Align(ops.ModulatedDeformConv2d):
        pass

    with pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(Arguments(Align(3, 8, 3)), inputs=(torch.randn(2, 3, 5, 5), torch.zeros(2, 18, 3, 3),
                                                            torch.ones(2, 9, 3, 3)))
    assert report.skipped == {'conv': 'Align: its weight reached no convolution function'}


def test_the_channels_of_the_input_are_those_of_the_first_filters():
    net = nn.Sequential(Filters(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    report = convert_(net)
    assert (report.converted, report.unseen) == (['0', '2'], [])


class WithFactor(nn.Conv2d):
    """With gradients it uses its weight in another way. It cannot run on guessed inputs."""

    def forward(self, x, options):
        y = super().forward(x * options['factor'])
        return y / self.weight.norm() if torch.is_grad_enabled() else y


@pytest.mark.parametrize('weight', ['wn', 'spectral'])
def test_other_forms_of_the_weight_need_the_layout_of_the_class(weight):
    with pytest.warns(UserWarning, match='nothing was'):
        report = convert_(nn.Sequential(TransposedByHand(), nn.BatchNorm2d(8)), weight=weight)
    assert report.skipped == {'0': f'TransposedByHand: weight={weight!r} knows transposed filters by the class only'}


def test_a_forward_that_changes_its_input_in_place_runs_alone_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = InPlace(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, batch):
            return self.norm(self.conv(batch['image']))

    assert convert_(Net()).converted == ['conv']


def test_the_inputs_run_with_gradients_too():
    net = Arguments(WithFactor(3, 8, 3))
    with pytest.warns(UserWarning, match='nothing was standardized'):
        report = convert_(net, inputs=(torch.randn(2, 3, 5, 5), {'factor': 2}))
    assert report.skipped == {'conv': 'not only norms follow: div'}


class Arguments(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(8)

    def forward(self, *args):
        return self.norm(self.conv(*args))


class GradientOfInput(nn.Module):
    """Its forward needs gradients."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, batch):
        x = batch['image']
        if self.training:
            x, = torch.autograd.grad(self.norm(self.conv(x.requires_grad_())).sum(), x)
        return self.norm(self.conv(x))


def test_a_network_that_needs_gradients_in_training():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        report = convert_(GradientOfInput(), inputs=[{'image': torch.randn(2, 3, 5, 5)}])
    assert report.converted == ['conv']


@pytest.mark.parametrize('register', ['register_forward_hook', 'register_forward_pre_hook'])
def test_hooks_on_a_convolution_did_not_run_and_are_named(register):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    getattr(net[2], register)(lambda *_: None)
    with pytest.warns(UserWarning, match=r"\['2'\] have forward hooks or pre-hooks, which did not run"):
        assert convert_(net).converted == ['0', '2']


def test_the_hook_of_torchs_pruning_is_known():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    prune.l1_unstructured(net[0], 'weight', 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert convert_(net).converted == ['0']

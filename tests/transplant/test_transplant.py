import copy
import json
import math
import re
import warnings

import pytest
import torch
from torch import nn

from mmws import WSError, convert_, transplant_
from mmws.layers.conv import WeightStandardized
from mmws.layers.switchable_norm import SwitchableNorm
from mmws.transplant.norms import NormFit, affine_of
from mmws.transplant.record import evaluating, recording
from mmws.transplant.sampling import Moments, moments

NORMS = [{}, {'norm': 'LN'}, {'norm': 'SN'}, {'norm': 'BCN'}, {'norm': 'EstBN'}, {'norm': 'keep'}, {'norm': 'IN'},
         {'weight': 'plain'}]


class Net(nn.Module):
    """A network with a residual block, a grouped convolution, negative scales and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.BatchNorm2d(16), nn.ReLU(),
                                   nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(x + self.block(x)))


def converted(net: nn.Module) -> nn.Module:
    convert_(net)
    return net


def trained(net: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Give ``net`` the statistics of images, and scales and shifts as after a training."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    for _ in range(30):
        net.train()(images(32).to(dtype))
    return net.eval()


def images(number: int = 32) -> torch.Tensor:
    """Return noise images that share little with each other."""
    return torch.rand(number, 3, 12, 12) * torch.rand(number, 3, 1, 1) * 4


def distance(net: nn.Module, teacher: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        expected = teacher(x)
        return float((net.eval()(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize('options', NORMS, ids=str)
def test_a_transplant_is_closer_than_the_weights_by_name(options):
    net, unseen = trained(Net()), images()
    teacher, by_name, affine = copy.deepcopy(net), copy.deepcopy(net), copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        convert_(by_name, **options)
    report = transplant_(net, images(64), **options)
    transplant_(affine, images(64), samples=0, **options)
    far, middle, near = (distance(one, teacher, unseen) for one in (by_name, affine, net))
    assert near < 0.85 * far
    assert near < middle * 1.1
    assert report.conversion.norm == options.get('norm', 'GN')
    assert report.kept == {}
    assert 0 < report.distance < 1
    assert list(report.ridge) == ['stem.0', 'block.0', 'block.3']
    assert report.lost.keys() == (set() if options.get('weight') == 'plain' else report.ridge.keys())
    assert all(0 <= lost < 1 for lost in report.lost.values())
    assert all(0 < fit <= 1 for fit in report.fit.values())
    assert torch.equal(net.head.weight, teacher.head.weight)


def test_the_report_is_readable_and_plain():
    net = trained(Net())
    report = transplant_(net, images())
    assert re.fullmatch(r'Transplant with 32 images: 3 convolutions and 3 norms fitted, 0 modules not fitted, '
                        r'fit 0\.\d\d on average, relative distance of the outputs \d\.\d\d, both on these images',
                        report.summary())
    assert re.search(r'filters     stem\.0: \d+% of the variance was in the means, ridge', str(report))
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))['fit'] == report.fit


def test_a_second_transplant_gives_the_same_network():
    one = trained(Net())
    other, x = copy.deepcopy(one), images()
    transplant_(one, x)
    torch.rand(7)  # the global generator plays no part
    transplant_(other, x)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_a_converted_network_takes_the_weights_of_its_teacher():
    teacher, x = trained(Net()), images()
    net, expected = Net(), copy.deepcopy(teacher)
    convert_(net)
    before = copy.deepcopy(teacher.state_dict())
    report = transplant_(net, x, teacher=teacher)
    transplant_(expected, x)
    assert report.conversion is None
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), expected.state_dict().values()))
    assert all(torch.equal(a, before[key]) for key, a in teacher.state_dict().items())
    assert not teacher.training


def test_modes_and_gradients_stay():
    net = trained(Net())
    net.train()
    net.block.eval()
    net.stem.requires_grad_(False)
    transplant_(net, images())
    assert [net.training, net.block.training, net.block[1].training] == [True, False, False]
    assert not net.stem[0].weight.requires_grad
    assert net.block[0].weight.requires_grad
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize('options', NORMS, ids=str)
def test_norms_without_parameters_and_double_precision(options):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 8, 3),
                        nn.BatchNorm2d(8), nn.ReLU()).double()
    trained_net = trained(net, torch.float64)
    report = transplant_(trained_net, images().double(), **options)
    assert report.fit['1'] > 0.2
    assert all(tensor.dtype is torch.float64 for tensor in trained_net.parameters())


def test_a_convolution_whose_output_another_layer_takes_first_keeps_its_filters():
    net = trained(Crossed())
    report = transplant_(net, images())
    assert set(report.fit) == {'norm'}
    assert report.lost == {}
    assert report.conversion.converted == []  # the dry run too passes the input of the norm by keyword


def test_a_record_tells_whether_the_norm_reads_the_output_of_the_convolution():
    net = trained(Net())
    right, wrong = {net.stem[1]: net.stem[0]}, {net.stem[1]: net.block[3]}
    for conv_of, shape in ((right, (32, 3, 12, 12)), (wrong, None)):
        with recording({net.stem[1]: 'stem.1'}, conv_of, 100, 0) as calls, evaluating(net):
            net(images())
        assert [call.conv_input for call in calls[net.stem[1]]] == [shape]


class Crossed(nn.Module):
    """The norm reads the sum of a convolution's output and another tensor; both are called by keyword."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(input=self.conv(input=x) + x[:, :1])


def test_an_exception_leaves_the_network_as_it_is():
    net, calls = trained(Net()), []
    before = copy.deepcopy(net.state_dict())

    def forward(network, x):
        calls.append(network)
        if len(calls) == 2:
            raise MemoryError('too large')
        return network(x)

    with pytest.raises(MemoryError):
        transplant_(net, images(), forward=forward)
    assert type(net.stem[1]) is nn.BatchNorm2d
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


class Shared(nn.Module):
    """A head that runs on each level of a pyramid."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return [self.norm(self.conv(level)) for level in (x, 3 * x[:, :, ::2, ::2], x[:, :, ::4, ::4] + 1)]


def test_a_shared_norm_fits_all_its_calls():
    net = trained(Shared())
    teacher, x = copy.deepcopy(net), images(64)
    transplant_(net, x)
    with torch.no_grad():
        found, expected = (moments(torch.cat([level.flatten(2) for level in one(x)], 2)) for one in (net, teacher))
    assert torch.allclose(found.mean, expected.mean, atol=1e-3)
    assert torch.allclose(found.variance, expected.variance, rtol=1e-2, atol=1e-3)


class Regions(nn.Module):
    """A head whose input depends on what the network found, as a detector's regions."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = Net(), nn.Sequential(nn.Conv2d(5, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        features = self.stem(x)
        chosen = features[features.mean((1, 2, 3)).argsort()[:9 if isinstance(self.head[1], nn.BatchNorm2d) else 7]]
        return self.head(chosen)


def test_inputs_of_another_shape_are_fitted_by_moments():
    net = trained(Regions())
    teacher = copy.deepcopy(net)
    report = transplant_(net, images())
    assert (net.head[1].weight * teacher.head[1].weight > 0).all()  # the filters kept their signs
    assert net.head[1].weight.min() < 0
    assert report.fit['head.1'] is None
    assert report.distance is None
    assert report.kept == {
        'head.0': 'its input differs in shape from that of the BatchNorm network, or its norm reads another output'}
    assert 'norm        head.1: fit unknown' in str(report)


def caffe_form(net):
    """Put the statistics of each norm into its affine map, as mmdet's tools/model_converters/detectron2pytorch.py."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            scale, shift = affine_of(norm)
            norm.load_state_dict({**nn.BatchNorm2d(len(scale)).state_dict(), 'weight': scale, 'bias': shift})
            norm.eps = 0
    return net


def test_statistics_in_the_affine_maps_are_those_of_a_training():
    net, x = trained(Net()), images()
    caffe = caffe_form(copy.deepcopy(net))
    report, expected = transplant_(caffe, x), transplant_(net, x)
    assert report.kept == {}
    assert report.fit == pytest.approx(expected.fit, abs=1e-3)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(caffe.parameters(), net.parameters()))


def test_what_does_not_run_or_was_not_trained_is_named():
    net = nn.ModuleDict({'used': trained(Net()), 'unused': nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))})
    with pytest.warns(UserWarning, match='norms were not fitted: unused.1: it was never trained: .*load its'):
        report = transplant_(net, images(), forward=lambda network, x: network['used'](x))
    assert report.kept['unused.1'].startswith('it was never trained: mean 0, variance 1')
    assert report.kept['unused.0'] == 'the norm that reads its output was not fitted'
    net = nn.ModuleDict({'used': trained(Net()), 'unused': trained(Net())})
    with pytest.warns(UserWarning, match='fitted: unused.stem.1, unused.block.1, unused.block.4: it did not run'):
        report = transplant_(net, images(), forward=lambda network, x: network['used'](x))
    assert report.kept['unused.block.4'] == 'it did not run on the images'


class Same(nn.Conv2d):
    """Pads its input itself."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class SharedNorm(nn.Module):
    """One norm after two convolutions."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.two(self.norm(self.one(x))))


def pair(conv, **options):
    return nn.Sequential(conv, nn.BatchNorm2d(8, **options), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize(('make', 'samples', 'reasons'), [
    (lambda: pair(Same(3, 8, 3)), 99, {'0': 'Same is not fitted, only Conv2d'}),
    (lambda: pair(nn.ConvTranspose2d(3, 8, 3)), 99, {'0': 'ConvTranspose2d is not fitted, only Conv2d'}),
    (SharedNorm, 99, {'one': 'norm reads the outputs of other convolutions too',
                      'two': 'norm reads the outputs of other convolutions too'}),
    (lambda: pair(nn.Conv2d(3, 8, 3)), 0, {'0': 'samples=0: the convolutions keep their filters',
                                          '2': 'samples=0: the convolutions keep their filters'}),
    (lambda: pair(nn.Conv2d(3, 8, 3), track_running_stats=False), 99,
     {'0': 'the norm that reads its output was not fitted',
      '1': 'it has no running statistics (track_running_stats=False)'}),
], ids=['a subclass', 'transposed', 'shared norm', 'samples=0', 'no statistics'])
def test_the_reasons_for_what_was_not_fitted_are_true(make, samples, reasons):
    net = trained(make())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        report = transplant_(net, images(), samples=samples)
    assert report.kept == reasons
    convs = [name for name, module in net.named_modules() if isinstance(module, WeightStandardized)]
    assert sorted(report.lost) == convs
    assert all(0 < lost < 1 for lost in report.lost.values())
    assert re.search(rf'not fitted  {next(iter(reasons))}: .*; \d+% of the variance was in the means', str(report))


def test_the_loss_is_the_same_for_a_convolution_that_is_not_fitted():
    net, x = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))), images()
    lost = [transplant_(copy.deepcopy(net), x, samples=samples).lost['0'] for samples in (0, 10**6)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-4)


def test_plain_convolutions_lose_nothing():
    report = transplant_(trained(Net()), images(), weight='plain')
    assert report.lost == {}
    assert 'filters     stem.0: ridge' in str(report)
    assert 'in the means' not in str(report)


def test_a_network_without_statistics_is_refused():
    with pytest.raises(WSError, match=r'has no BatchNorm to carry over: it has no running statistics \(track_running'):
        transplant_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)), images())


@pytest.mark.parametrize(('case', 'message'), [
    (lambda net: transplant_(net, torch.empty(0, 3, 8, 8)), 'expected images, got none'),
    (lambda net: transplant_(net, []), 'expected images, got none'),
    (lambda net: transplant_(net, [torch.rand(3, 8, 8), torch.rand(3, 9, 8)]), 'images of one size, got .*8, 8.*9, 8'),
    (lambda net: transplant_(net, images(), weight='spectral'), r"expected weight='ws' or .*, got 'spectral'"),
    (lambda net: transplant_(net, images(), groups=3), "unknown ws option 'groups'"),
    (lambda net: transplant_(net, images(), forward=lambda network, x: x), 'no trained BatchNorm ran on the images'),
    (lambda net: transplant_(Net(), images()), 'it was never trained: .*load its weights first'),
    (lambda net: transplant_(nn.Conv2d(3, 4, 1), images()), 'the network, Conv2d, has no BatchNorm'),
    (lambda net: transplant_(net, images(), teacher=nn.Conv2d(3, 4, 1)), 'the teacher, Conv2d, has no BatchNorm'),
    (lambda net: transplant_(net, images() * float('nan')), 'the input of stem.1 is NaN or infinite'),
    (lambda net: transplant_(converted(Net()), images(), teacher=net, norm='LN'), r'options of the .* \(norm\)'),
    (lambda net: transplant_(Net(), images(), teacher=net), 'Net is not converted: it has the layers of the BatchNorm'),
    (lambda net: transplant_(nn.Conv2d(3, 4, 1), images(), teacher=net), 'has 0 children, in `teacher` it has 3'),
    (lambda net: transplant_(nn.Sequential(*net.children(), nn.ReLU()), images(), teacher=net), '4 children.* 3;'),
    (lambda net: transplant_(net, (images() * 50).byte()), r'Expected .* of torch.float32, .* got torch.uint8 of'),
    (lambda net: transplant_(net, images().double()), 'does not run on the images: .* got torch.float64 of shape'),
    (lambda net: transplant_(net, images()[0]), r'does not run on the images: .* of shape \(3, 12, 12\); or give'),
    (lambda net: transplant_(net, images()[:, :1]), r'does not run on the images: .* of shape \(32, 1, 12, 12\)'),
    (lambda net: transplant_(net, [image.numpy() for image in images()]), r'does not run on .* got \[array'),
    (lambda net: transplant_(net, images(), samples=-5), 'samples: expected a whole number, 0 or more, got -5'),
    (lambda net: transplant_(net, images(), samples=1.5), 'samples: expected a whole number, 0 or more, got 1.5'),
    (lambda net: transplant_(net, images(), seed='a'), "seed: expected a whole number, 0 or more, got 'a'"),
], ids=['no images', 'an empty list', 'two sizes', 'weight', 'an unknown option', 'nothing runs', 'untrained',
        'no norm', 'a teacher without norms', 'NaN', 'options with a teacher', 'not converted',
        'another model', 'more children', 'uint8', 'float64', 'one image', 'one channel', 'numpy', 'samples below 0',
        'half samples', 'seed'])
def test_bad_input_leaves_the_network_as_it_is(case, message):
    net = trained(Net())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(WSError, match=message):
        case(net)
    assert type(net.stem[1]) is nn.BatchNorm2d
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(('name', 'value', 'problem'), [
    ('stem.0.weight', math.nan, 'has NaN or infinite values'), ('head.weight', math.inf, 'has NaN or infinite values'),
    ('block.4.weight', math.nan, 'has NaN or infinite values'),
    ('block.4.bias', math.nan, 'has NaN or infinite values'),
    ('block.4.running_var', math.nan, 'has NaN or infinite values'), ('block.4.running_var', -1, 'is negative'),
    ('block.4.running_mean', math.inf, 'has NaN or infinite values')])
def test_weights_that_are_not_finite_are_refused(name, value, problem):
    net, pristine = trained(Net()), Net()
    convert_(pristine)
    before = copy.deepcopy(pristine.state_dict())
    net.state_dict()[name].view(-1)[0] = value
    message = re.escape(f'{name} of the BatchNorm network {problem}; take weights of an earlier step')
    with pytest.raises(WSError, match=message):
        transplant_(net, images())
    with pytest.raises(WSError, match=message):
        transplant_(pristine, images(), teacher=net)
    assert type(net.stem[1]) is nn.BatchNorm2d
    assert all(torch.equal(tensor, before[key]) for key, tensor in pristine.state_dict().items())


def test_a_fit_that_is_not_finite_is_refused():
    net = trained(Net())
    net.block[4].weight.data.mul_(1e25)  # the squares overflow
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(WSError, match=r'block\.4\.weight of the fitted network has NaN or infinite values; Net stays'):
        transplant_(net, images())
    assert type(net.stem[1]) is nn.BatchNorm2d
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_infinite_outputs_have_no_distance():
    net = trained(nn.Sequential(Net(), nn.Threshold(0, -math.inf)))  # as a mask
    assert transplant_(net, images()).distance is None


def test_another_width_is_refused():
    other = Net()
    other.head = nn.Conv2d(16, 6, 1)
    convert_(other)
    with pytest.raises(WSError, match=r'head\.weight has shape \(6, 16, 1, 1\), in `teacher` it has \(5, 16, 1, 1\)'):
        transplant_(other, images(), teacher=trained(Net()))


def test_few_images_warn():
    with pytest.warns(UserWarning, match='7 images, expected 8 or more') as caught:
        transplant_(trained(Net()), images(7))
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize('norm', [nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True), SwitchableNorm(8),
                                  nn.BatchNorm2d(8)], ids=lambda norm: type(norm).__name__)
def test_a_fitted_norm_gives_each_channel_its_moments(norm):
    target = Moments(torch.randn(8), torch.rand(8) + 0.5, 100)
    sign = torch.tensor([1.0, -1] * 4)
    x = torch.randn(16, 8, 5, 5) * torch.rand(8, 1, 1) + torch.randn(8, 1, 1)
    norm.eval()
    with torch.no_grad():
        NormFit(norm).update_(x, target, sign)
        found = moments(norm(x))
    assert torch.allclose(found.mean, target.mean, atol=1e-3)
    assert torch.allclose(found.variance, target.variance, rtol=1e-2)
    assert torch.equal(norm.weight.sign(), sign)


def test_a_dead_channel_keeps_a_finite_scale():
    norm, x = nn.GroupNorm(8, 8), torch.randn(4, 8, 5, 5)
    x[:, 3] = 2
    with torch.no_grad():
        NormFit(norm).update_(x, Moments(torch.ones(8), torch.ones(8), 100), torch.ones(8))
    assert norm.weight[3] == 1
    assert norm.bias[3] == 1
    assert torch.isfinite(norm.weight).all()

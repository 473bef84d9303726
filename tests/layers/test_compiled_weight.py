"""Compiled inference: the graph refreshes a kept weight, and standardizes only what changed."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmws import ConvWS2d, convert_
from mmws.layers import weight_cache
from mmws.ops.torch_compat import DETECTS_WRITES
from tests.helpers.versions import is_older
from tests.layers.test_weight_cache import CHANGES, NEEDS, build, expected
from tests.layers.test_weight_cache import X as IMAGE

pytestmark = pytest.mark.skipif(not DETECTS_WRITES or is_older('torch', '2.7'), reason='needs torch >= 2.7')
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Conv2d):
    def forward(self, x):
        return torch.conv2d(2 * x, self.weight, self.bias)


@pytest.fixture
def net():
    """Return a network with two convolutions whose compiled inference has a kept weight, and two others."""
    torch.compiler.reset()
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 16, 3), nn.BatchNorm2d(16),
                        Scaled(16, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)).eval()
    assert len(convert_(net).converted) == 3
    return net


@pytest.fixture
def standardized(monkeypatch):
    """Return the weights that were standardized outside of the graphs."""
    found, real = [], weight_cache.standardize_filters

    def counted(weight, *args, **kwargs):
        found.append(tuple(weight.shape))
        return real(weight, *args, **kwargs)

    monkeypatch.setattr(weight_cache, 'standardize_filters', counted)
    return found


@torch.no_grad()
def infer(compiled, net, standardized):
    """Run inference, compare with the network that is not compiled, and return the number of standardized weights."""
    standardized.clear()
    output, count = compiled(X.to(net[0].weight.dtype)), len(standardized)
    torch.testing.assert_close(output, net(X.to(net[0].weight.dtype)), rtol=1e-4, atol=1e-4)
    return count


def step(net, compiled):
    net.train()
    compiled(X).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    net.eval()


def write_in_place(net, compiled):
    with torch.no_grad():
        net[0].weight.mul_(-2)


def write_data(net, compiled):
    net[0].weight.data[0, 0] += 1


def load(net, compiled):
    net.load_state_dict({name: value - 0.1 for name, value in net.state_dict().items()})


def set_eps(net, compiled):
    net[0].eps = 0.5


@pytest.mark.parametrize(('change', 'count'), [
    (step, 2), (write_in_place, 1), (write_data, 1), (load, 2), (lambda net, compiled: None, 0), (set_eps, 1)])
@pytest.mark.parametrize('backend', ['inductor', 'aot_eager', 'eager'])
def test_a_change_of_the_weight_is_seen_and_nothing_else_is_computed(net, standardized, change, count, backend):
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    assert [infer(compiled, net, standardized) for _ in range(3)] == [2, 0, 0]
    change(net, compiled)
    assert infer(compiled, net, standardized) == count
    assert infer(compiled, net, standardized) == 0


@pytest.mark.parametrize('change', [
    pytest.param(change, id=name, marks=NEEDS.get(name, ())) for name, change in CHANGES.items()])
def test_each_change_of_the_eager_tests_is_seen(change):
    torch.compiler.reset()
    conv = build().eval()
    compiled = torch.compile(conv, backend='aot_eager')
    for change_again in (True, True, False):
        output, _ = expected(conv, IMAGE)
        with torch.no_grad():
            torch.testing.assert_close(compiled(IMAGE), output)
        if change_again:
            change(conv)


@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
def test_no_recompilation_in_the_second_epoch(net, standardized, mode):
    torch._dynamo.utils.counters.clear()
    compiled, graphs = torch.compile(net, fullgraph=True, mode=mode), []
    for _ in range(3):
        step(net, compiled)
        assert infer(compiled, net, standardized) == 2
        graphs.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    assert graphs == [2, 2, 2]  # one for training, one for inference


@pytest.mark.parametrize('change', [
    lambda net: net.double(), lambda net: net.to(memory_format=torch.channels_last),
    lambda net: net[0].register_parameter('weight', nn.Parameter(torch.randn(16, 3, 3, 3)))],
    ids=['dtype', 'memory format', 'parameter'])
def test_a_weight_of_another_kind(net, standardized, change):
    compiled = torch.compile(net)
    infer(compiled, net, standardized)
    change(net)
    infer(compiled, net, standardized)
    net.eval()
    infer(compiled, net, standardized)
    assert infer(compiled, net, standardized) == 0


@pytest.mark.parametrize('twin', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=['copy', 'pickle'])
def test_copies_have_memory_of_their_own(net, standardized, twin):
    infer(torch.compile(net), net, standardized)
    other = twin(net)
    write_in_place(other, None)
    assert infer(torch.compile(other), other, standardized) == 2
    infer(torch.compile(net), net, standardized)
    assert '_compiled' not in net[0].__getstate__()


class Block(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv, self.norm = conv(4, 4, 3, padding=1), nn.GroupNorm(2, 4)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


@pytest.mark.parametrize('training', [False, True])
def test_blocks_that_are_compiled_one_by_one_share_their_graphs(training):
    graphs = []
    for conv in (nn.Conv2d, ConvWS2d):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        blocks = nn.Sequential(*(Block(conv) for _ in range(10))).train(training)
        for block in blocks:
            block.compile(fullgraph=True, backend='aot_eager')
        x = torch.randn(1, 4, 8, 8)
        with torch.set_grad_enabled(training):
            output = blocks(x)
            for block in blocks:
                x = block.forward(x)  # not compiled
        torch.testing.assert_close(output, x, rtol=1e-4, atol=1e-4)
        graphs.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    assert graphs[0] == graphs[1] <= 2


@pytest.mark.parametrize('backend', ['inductor', 'aot_eager', 'eager'])
def test_a_result_that_is_written_leaves_the_kept_weight_alone(backend):
    torch.compiler.reset()
    conv = ConvWS2d(3, 4, 3).eval()

    @partial(torch.compile, backend=backend)
    def halve(x):
        return torch.conv2d(x, conv.standardized_weight().mul_(0.5), conv.bias)

    with torch.no_grad():
        first = halve(X)
        held = torch.compile(conv.standardized_weight, backend=backend)()
        before = held.clone()
        torch.testing.assert_close(halve(X), first)
        conv.weight.neg_()
        halve(X)
    assert torch.equal(held, before)


@pytest.mark.parametrize('backend', ['inductor', 'aot_eager', 'eager'])
def test_inference_mode_and_a_layer_in_training_mode(net, standardized, backend):
    compiled = torch.compile(net, backend=backend)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(X), net(X), rtol=1e-4, atol=1e-4)
    net.train()
    assert infer(compiled, net, standardized) == 0


def test_without_a_cache_and_in_an_export_there_is_the_formula(net, standardized):
    exported = torch.export.export(net, (X,))
    assert 'mmws' not in str(exported.graph)
    convert_(net, cache=False)
    net.eval()
    assert infer(torch.compile(net), net, standardized) == 0


def test_gradients_of_a_network_in_evaluation_mode(net):
    compiled, grads = torch.compile(net), []
    for forward in (compiled, net):
        forward(X).square().sum().backward()
        grads.append(net[0].weight.grad)
        net.zero_grad()
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_a_layer_that_is_called_for_its_weight():
    layer = ConvWS2d(3, 4, 3).eval()
    with torch.no_grad():
        weight = torch.compile(lambda: layer.standardized_weight() + 0)()
    torch.testing.assert_close(weight, layer.standardized_weight())


def test_evaluation_mode_that_is_set_in_inference_mode():
    net = nn.Sequential(ConvWS2d(3, 4, 3))
    with torch.inference_mode():
        net.eval()
    compiled = torch.compile(net)
    compiled(X).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), net(X), rtol=1e-4, atol=1e-4)


def test_evaluation_mode_that_is_set_in_a_compiled_function():
    layer = ConvWS2d(3, 4, 3)

    @torch.compile
    def infer(x):
        layer.eval()
        return layer(x)

    with torch.no_grad():
        torch.testing.assert_close(infer(X), layer(X), rtol=1e-4, atol=1e-4)


def test_layers_without_memory_are_not_prepared():
    with FakeTensorMode():
        assert ConvWS2d(3, 4, 3).eval()._compiled is None
    assert ConvWS2d(3, 4, 3, device='meta').eval()._compiled is None


def test_a_half_precision_weight(net):
    net.bfloat16().eval()
    with torch.no_grad():
        output = torch.compile(net)(X.bfloat16())
    torch.testing.assert_close(output, net(X.bfloat16()), rtol=0.1, atol=0.1)

from __future__ import annotations

import copy
import ctypes
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mmws.layers.conv
import mmws.layers.weight_cache
from mmws import ConvWS1d, ConvWS2d, ConvWS3d, convert_, standardize_weight
from mmws.layers.conv_transpose import ConvTransposeWS2d
from mmws.layers.weight_cache import WeightCache
from mmws.ops.kernels import standardize_together
from mmws.ops.torch_compat import DETECTS_WRITES, address
from tests.helpers.versions import ONE_GRAPH, needs_cache, needs_torch, times

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def build():
    return ConvWS2d(4, 6, 3, dtype=torch.float64)


def expected(conv, x=X):
    """Return the output and the gradient by the authors' formula and autograd, without a cache."""
    weight = conv.weight.detach().clone().requires_grad_()
    rows = weight.flatten(1)
    standardized = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + conv.eps)
    out = nn.functional.conv2d(x, standardized.view_as(weight), conv.bias)
    return out.detach(), torch.autograd.grad(out.square().sum(), weight)[0]


def assert_correct(conv, x=X):
    out, gradient = expected(conv, x)
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(conv(x).clone(), out)
    if conv.weight.requires_grad:
        torch.testing.assert_close(torch.autograd.grad(conv(x).square().sum(), conv.weight)[0], gradient)


@pytest.fixture
def count(monkeypatch) -> list[int]:
    """A list that grows by one element per standardized weight."""
    calls: list[int] = []
    for module, name in ((mmws.layers.weight_cache, 'standardize_filters'),
                         (mmws.layers.weight_cache, 'standardize_weight'),
                         (mmws.layers.conv, 'standardize_weight')):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, original=original, **named: calls.append(1) or original(*args, **named))
    return calls


@pytest.fixture
def batches(monkeypatch) -> list[list[nn.Parameter]]:
    """The weights of each call of ``standardize_together``, which the fixture turns on for the CPU."""
    calls: list[list[nn.Parameter]] = []
    monkeypatch.setattr(mmws.layers.weight_cache, 'BATCHED_DEVICES', {'cpu'})
    monkeypatch.setattr(mmws.layers.weight_cache, 'standardize_together',
                        lambda weights, eps: calls.append(weights) or standardize_together(weights, eps))
    return calls


def train() -> list[torch.Tensor]:
    """Return the weights after three steps."""
    torch.manual_seed(0)
    net = nn.Sequential(ConvWS2d(3, 8, 3), ConvTransposeWS2d(8, 4, 2), ConvWS2d(4, 8, 2), ConvWS2d(8, 8, 3),
                        ConvWS2d(8, 8, 1, eps=0.5), ConvWS2d(8, 8, 1).requires_grad_(False))
    net[2].to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        net(torch.randn(1, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in net.parameters()]


@needs_cache
def test_weights_of_one_optimizer_step_are_standardized_together(batches, monkeypatch):
    together = train()
    assert [len(batch) for batch in batches] == [3, 3]  # the others are transposed, frozen, or have another eps
    monkeypatch.setattr(mmws.layers.weight_cache, 'BATCHED_DEVICES', set())
    torch.testing.assert_close(together, train())
    assert len(batches) == 2


@needs_cache
def test_weights_of_two_optimizers_are_not_standardized_together(batches):
    nets = [nn.Sequential(ConvWS2d(3, 4, 3), ConvWS2d(4, 4, 3)) for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    for net in nets:
        net(torch.randn(1, 3, 9, 9)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    for net in nets:
        net(torch.randn(1, 3, 9, 9))
    assert [list(map(id, batch)) for batch in batches] == [[id(conv.weight) for conv in net] for net in nets]


@pytest.mark.usefixtures('batches')
def test_a_result_of_a_batch_is_not_overwritten():
    """All results of a batch share one storage, so its number of users says nothing about one result."""
    first, second = net = nn.Sequential(ConvWS2d(2, 2, 1), ConvWS2d(2, 2, 1))
    net(torch.randn(1, 2, 9, 9)).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    with torch.no_grad():
        net(torch.randn(1, 2, 9, 9))
        first.double().standardized_weight()
        held = second.standardized_weight()
        before = held.clone()
        second.weight.data.neg_()
        assert torch.equal(second.standardized_weight(), -before)
    assert torch.equal(held, before)


@pytest.mark.parametrize('held', [pytest.param(False, marks=needs_cache), True])
def test_stale_memory_is_reused_unless_it_is_used_elsewhere(held):
    cache, weight = WeightCache(), nn.Parameter(torch.randn(4, 3, 3, 3))
    first = cache.standardize(weight, 1e-5)
    start, before = first.data_ptr(), first.detach().clone()
    if not held:
        del first
    weight.data.copy_(torch.randn_like(weight))
    second = cache.standardize(weight, 1e-5)
    assert (second.data_ptr() == start) != held
    torch.testing.assert_close(second, standardize_weight(weight, 1e-5))
    if held:
        assert torch.equal(first, before)


def random_like(weight):
    return torch.randn_like(weight)


def step(conv):
    conv(X).square().sum().backward()
    torch.optim.SGD(conv.parameters(), lr=0.1).step()


def hand_written_step(conv):
    conv(X).square().sum().backward()
    conv.weight.data.add_(conv.weight.grad, alpha=-0.1)


def fused_step(conv):
    conv(X).square().sum().backward()
    kernel = {'fused': True} if torch.__version__ >= '2.4' else {'foreach': True}  # fused ones were for CUDA
    torch.optim.Adam(conv.parameters(), lr=0.1, **kernel).step()


def swap_ema(conv):
    hook = EMAHook()
    hook.src_model, hook.ema_model = conv, ExponentialMovingAverage(conv, momentum=0.5)
    nn.init.normal_(hook.ema_model.module.weight)
    hook._swap_ema_parameters()
    assert_correct(conv)
    hook._swap_ema_parameters()


def swapped(conv):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        conv.float().double().load_state_dict({'weight': random_like(conv.weight), 'bias': conv.bias})
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def replace(conv):
    conv.weight = nn.Parameter(random_like(conv.weight))


def write_numpy(conv):
    array = conv.weight.detach().numpy()
    array[0] = 3
    assert_correct(conv)
    array[1, 0, 0] = 5  # the same array after a forward pass


@torch.no_grad()
def edit(conv):
    conv.weight[0, 0, 0, 0] += 1


def swap_memory(conv):
    """Exchange two buffers twice: the second write goes to the first address."""
    first = conv.weight.data
    conv.weight.data = random_like(first)
    first.copy_(random_like(first))
    conv.weight.data = first


def move_within_memory(conv):
    weight = conv.weight.data
    conv.weight.data = torch.randn(2, *weight.shape, dtype=weight.dtype)[0]
    assert_correct(conv)
    conv.weight.data = conv.weight.data.as_strided(weight.shape, weight.stride(), weight.numel())


CHANGES = {
    'optimizer step': step,
    'fused optimizer step': fused_step,
    'hand-written step': hand_written_step,
    'load_state_dict': lambda conv: conv.load_state_dict({'weight': random_like(conv.weight), 'bias': conv.bias}),
    'load_state_dict, assigned': lambda conv: conv.load_state_dict(
        {'weight': random_like(conv.weight), 'bias': conv.bias}, assign=True),
    'data assigned': lambda conv: setattr(conv.weight, 'data', random_like(conv.weight)),
    'data assigned back': swap_memory,
    'data transposed': lambda conv: setattr(conv.weight, 'data', conv.weight.data.transpose(2, 3)),
    'data: another part of the same memory': move_within_memory,
    'data: a negated view of the same memory': lambda conv: setattr(conv.weight, 'data', torch._neg_view(conv.weight)),
    'data written': lambda conv: conv.weight.data.copy_(random_like(conv.weight)),
    'data negated': lambda conv: conv.weight.data.neg_(),
    'data: filters exchanged': lambda conv: conv.weight.data.copy_(conv.weight.data.flip(0)),
    'data: one element': lambda conv: conv.weight.data.view(-1)[17:18].add_(1),
    'memory': lambda conv: conv.weight.untyped_storage().copy_(random_like(conv.weight).untyped_storage()),
    'numpy': write_numpy,
    'vector': lambda conv: vector_to_parameters(
        parameters_to_vector(conv.parameters()).detach().neg(), conv.parameters()),
    'to': lambda conv: conv.float().double(),
    'to channels_last': lambda conv: conv.to(memory_format=torch.channels_last),
    'swapped': swapped,
    'replaced': replace,
    'shared': lambda conv: (conv.weight.share_memory_(), assert_correct(conv), conv.weight.data.neg_()),
    'ema swap': swap_ema,
    'frozen': lambda conv: conv.requires_grad_(False),
    'frozen and back': lambda conv: (conv.requires_grad_(False), assert_correct(conv), conv.requires_grad_(True)),
    'no_grad edit': edit,
    'init': lambda conv: nn.init.normal_(conv.weight),
    'eps': lambda conv: setattr(conv, 'eps', 0.5),
    'result written': lambda conv: conv.standardized_weight().detach().zero_(),
    'pruned': lambda conv: prune.l1_unstructured(conv, 'weight', amount=0.5),
}
NEEDS = {'load_state_dict, assigned': needs_torch('2.1', 'load_state_dict(assign=True)'),
         'swapped': needs_torch('2.3', 'set_swap_module_params_on_conversion')}


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('change', [
    pytest.param(change, id=name, marks=NEEDS.get(name, ())) for name, change in CHANGES.items()])
def test_never_stale(change, training):
    conv = build().train(training)
    assert_correct(conv)
    change(conv)
    assert_correct(conv)
    change(conv)
    assert_correct(conv)


@pytest.mark.parametrize('write', [lambda held: held.neg_(), lambda held: held[1, 2].fill_(3)])
@pytest.mark.parametrize('hold', [
    lambda conv: conv.weight, lambda conv: conv.weight.data, lambda conv: conv.weight.data[:3],
    lambda conv: conv.weight.detach().numpy(), lambda conv: conv.state_dict()['weight']])
def test_a_write_through_an_older_reference_invalidates(hold, write):
    conv = build()
    held = hold(conv)
    assert_correct(conv)
    with torch.no_grad():
        write(torch.as_tensor(held))
    assert_correct(conv)


def test_flat_parameters():
    conv = build()
    flat = torch.randn(2, *conv.weight.shape, dtype=X.dtype)
    conv.weight.data = flat[1]
    for _ in range(2):
        assert_correct(conv)
        flat.neg_()


@pytest.fixture
def cuda(monkeypatch) -> dict[str, bool]:
    """The state of the CUDA stream that the cache sees: whether a graph is captured, and the stream's kind."""
    state = {'captured': False, 'default': True}
    monkeypatch.setattr(mmws.layers.weight_cache, '_in_graphs', set())
    monkeypatch.setattr(mmws.layers.weight_cache, '_is_captured', lambda _: state['captured'])
    monkeypatch.setattr(mmws.layers.weight_cache, '_is_on_default_stream', lambda _: state['default'])
    return state


@needs_cache
@pytest.mark.parametrize('captured', [
    lambda conv: conv(X), lambda conv: torch.no_grad()(conv)(X),
    lambda conv: torch.optim.SGD(conv.parameters(), lr=0.1).step()])
def test_a_weight_in_a_cuda_graph_stays_at_its_address_and_is_never_stale(cuda, captured):
    """A graph keeps the address of the weight; a replay writes to it, as memset does here, without a trace."""
    conv = build()
    conv(X).sum().backward()
    start = address(conv.weight)
    cuda.update(captured=True, default=False)
    captured(conv)
    cuda.update(captured=False, default=True)
    for _ in range(2):
        assert_correct(conv)
        conv.weight.data.neg_()
        assert address(conv.weight) == start
        assert_correct(conv)
        ctypes.memset(address(conv.weight), 0, conv.weight.numel() * 4)
        assert_correct(conv)


@needs_cache
def test_another_stream_does_not_use_copy_on_write(cuda, count):
    """torch copies a weight on the default stream, and other streams do not wait for it."""
    conv = build()
    assert_correct(conv)
    start, calls = address(conv.weight), len(count)
    cuda['default'] = False
    assert_correct(conv)
    assert len(count) == calls + 4  # each call of assert_correct
    conv.weight.data.neg_()
    assert address(conv.weight) == start
    assert_correct(conv)


def test_inference_mode_weights():
    with torch.inference_mode():
        conv = build().requires_grad_(False)
        for _ in range(2):
            torch.testing.assert_close(conv(X), nn.functional.conv2d(X, conv.standardized_weight(), conv.bias))
            conv.weight.neg_()
            torch.testing.assert_close(conv.standardized_weight(), mmws.standardize_weight(conv.weight))


def test_requires_grad_of_a_result_does_not_affect_the_cache():
    conv = build().requires_grad_(False)
    conv.standardized_weight().requires_grad_()
    assert not conv.standardized_weight().requires_grad


def test_fake_tensors_do_not_enter_the_cache():
    conv = build()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        conv(mode.from_tensor(X))
    assert_correct(conv)


def test_a_dispatch_mode_sees_the_same_operators_in_each_pass():
    seen: list[list[str]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen[-1].append(str(function))
            return function(*args, **kwargs or {})

    conv = build()
    for _ in range(2):
        seen.append([])
        with Record():
            conv(X)
    assert seen[0] == seen[1]


def test_inference_before_training():
    conv = build()
    with torch.inference_mode():
        conv(X)
    assert_correct(conv)


def test_a_second_forward_before_backward():
    conv = build()
    outputs, gradients = [], []
    for _ in range(3):
        gradients.append(expected(conv)[1])
        outputs += [conv(X), conv(X)]
        nn.init.normal_(conv.weight)
    for out, gradient in zip(outputs, [g for g in gradients for _ in range(2)]):
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), conv.weight)[0], gradient)


def test_second_derivative_equals_the_formula_or_raises():
    conv = build()
    weight = conv.weight.detach().clone().requires_grad_()
    outs = conv.standardized_weight(), mmws.ops.standardize._formula(weight, conv.eps, True)
    seconds = []
    for out, leaf in zip(outs, (conv.weight, weight)):
        first, = torch.autograd.grad(out.pow(3).sum(), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(*seconds)
    out = conv.standardized_weight()
    nn.init.normal_(conv.weight)
    with pytest.raises(RuntimeError, match='was changed in place after the forward pass'):
        torch.autograd.grad(out.pow(3).sum(), conv.weight, create_graph=True)


@pytest.mark.parametrize('optimizer', [torch.optim.SGD, torch.optim.AdamW])
def test_gradient_accumulation_standardizes_once_and_keeps_the_address(count, optimizer):
    conv = build()
    update, start = optimizer(conv.parameters(), lr=0.1), conv.weight.data_ptr()
    where = address if DETECTS_WRITES else torch.Tensor.data_ptr  # data_ptr ends copy-on-write
    for updates in range(1, 4):
        for _ in range(8):
            conv(X).square().sum().backward()
        update.step()
        update.zero_grad()
        assert len(count) == times(updates, 8 * updates)
        assert where(conv.weight) == start


def test_a_head_shared_by_five_levels_is_standardized_once_per_step(count):
    head = MODELS.build({'type': 'RetinaHead', 'num_classes': 3, 'in_channels': 32, 'feat_channels': 32,
                         'norm_cfg': {'type': 'GN', 'num_groups': 8}})
    assert len(convert_(head).converted) == 8
    update = torch.optim.SGD(head.parameters(), lr=0.1)
    for steps in range(1, 3):
        out = head([torch.randn(1, 32, size, size) for size in (16, 8, 4, 2, 1)])
        sum(level.sum() for levels in out for level in levels).backward()
        update.step()
        assert len(count) == times(8, 5 * 8) * steps


def test_frozen_layers_and_inference_are_standardized_once(count):
    frozen, trained = (ConvWS2d(4, 4, 3, dtype=X.dtype).requires_grad_(trains) for trains in (False, True))
    update = torch.optim.SGD([*frozen.parameters(), *trained.parameters()], lr=0.1)
    for _ in range(3):
        trained(frozen(X)).sum().backward()
        update.step()
    assert len(count) == times(1 + 3, 2 * 3)
    for context in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with context():
            trained(frozen(X))
    assert len(count) == times(1 + 3 + 1, 2 * 3 + 2 * 3)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_training_saves_no_more_than_the_standardized_weight(dtype):
    def saved(conv):
        storages: dict[int, int] = {}

        def save(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(save, lambda _: None):
            conv(torch.randn(1, 16, 8, 8, dtype=dtype))
        return sum(storages.values())

    plain, standardized = nn.Conv2d(16, 32, 3, bias=False, dtype=dtype), ConvWS2d(16, 32, 3, bias=False, dtype=dtype)
    widened = 32 * 16 * 9 if dtype == torch.bfloat16 else 0
    assert saved(standardized) <= saved(plain) + 2 * 32 + widened


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_has_the_gradient_of_float32_statistics(dtype):
    conv, upstream = ConvWS2d(16, 32, 3).to(dtype), torch.randn(32, 16, 3, 3, dtype=dtype)
    cached, functional = conv.standardized_weight(), mmws.standardize_weight(conv.weight, conv.eps)
    with torch.no_grad():
        assert torch.equal(conv.standardized_weight(), functional)
    gradients = [torch.autograd.grad(out, conv.weight, upstream)[0] for out in (cached, functional)]
    assert torch.equal(*gradients)


def test_copies_and_checkpoints_do_not_contain_the_cache():
    conv, plain = ConvWS2d(16, 32, 3), ConvWS2d(16, 32, 3)
    conv(torch.randn(1, 16, 8, 8))
    assert list(conv.state_dict()) == list(plain.state_dict())
    assert conv.__getstate__().keys() == plain.__getstate__().keys()
    assert len(pickle.dumps(conv)) == len(pickle.dumps(plain))
    files = io.BytesIO(), io.BytesIO()
    torch.save(conv.state_dict(), files[0])
    torch.save(plain.state_dict(), files[1])
    assert len(files[0].getvalue()) == len(files[1].getvalue())
    for copied in (copy.deepcopy(conv), copy.copy(conv), pickle.loads(pickle.dumps(conv))):
        assert copied._cache is None
    copied = copy.deepcopy(conv)
    copied.weight.data.neg_()
    assert torch.equal(copied.standardized_weight(), -conv.standardized_weight())


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('warm', [True, False])
def test_activation_checkpointing(reentrant, warm):
    net = nn.Sequential(ConvWS2d(4, 4, 3), nn.GELU(), ConvWS2d(4, 4, 3)).double()
    x = X.double().requires_grad_()
    if warm:
        net(x)
    gradients = torch.autograd.grad(net(x).square().sum(), net.parameters())
    nn.init.normal_(net[2].weight) if not warm else None
    gradients = torch.autograd.grad(net(x).square().sum(), net.parameters())
    checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in net.parameters()], [*gradients])


def test_threads(count):
    conv = build().eval()
    with torch.no_grad(), ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(lambda _: torch.no_grad()(conv)(X), range(64)))
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert len(count) == times(1, 64)
    assert_correct(conv)


@pytest.mark.parametrize('backend', ['aot_eager', 'eager'])
def test_a_compiled_graph_does_not_use_the_cache(backend):
    conv = build()
    compiled = torch.compile(conv, fullgraph=ONE_GRAPH, backend=backend)
    for _ in range(2):
        assert_correct(conv)
        out, gradient = expected(conv)
        torch.testing.assert_close(compiled(X), out)
        torch.testing.assert_close(torch.autograd.grad(compiled(X).square().sum(), conv.weight)[0], gradient)
        conv.weight.data.neg_()


@needs_torch('2.3', 'torch.export.export(strict=...)')
@pytest.mark.parametrize('strict', [True, False])
def test_an_exported_program_contains_the_raw_weight(strict):
    conv = build().eval()
    conv(X)
    program = torch.export.export(conv, (X,), strict=strict)
    torch.testing.assert_close(program.state_dict['weight'], conv.weight)
    torch.testing.assert_close(program.module()(X), conv(X))
    nn.init.normal_(conv.weight)
    module = program.module()
    module.load_state_dict(conv.state_dict())
    torch.testing.assert_close(module(X), conv(X))


def test_traced_and_transformed():
    conv = build()
    conv(X)
    traced = torch.jit.trace(conv, X)
    weights = {name: value.detach().neg() for name, value in conv.named_parameters()}
    out = torch.func.functional_call(conv, weights, X)
    gradients = torch.func.grad(lambda weights: torch.func.functional_call(conv, weights, X).square().sum())(weights)
    nn.init.normal_(conv.weight.data)
    torch.testing.assert_close(traced(X), conv(X))
    conv.load_state_dict(weights)
    torch.testing.assert_close(out, conv(X))
    torch.testing.assert_close(gradients['weight'], expected(conv)[1])


@pytest.mark.parametrize(('layer', 'dims'), [(ConvWS1d, 1), (ConvWS2d, 2), (ConvWS3d, 3)])
def test_convolutions_of_any_dimension_are_cached(count, layer, dims):
    conv = layer(4, 6, 3, padding=1, padding_mode='circular')
    for _ in range(3):
        conv(torch.randn(2, 4, *[5] * dims)).sum().backward()
    assert len(count) == times(1, 3)

"""Checks of layers, cache, conversion and folding on one device: functions ``check_*(device)``, which raise if wrong.

The formula of the tests is the authors', in float64 and by autograd, without the code of mmws. A check raises
:class:`NotHere` if the device cannot run it.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

import mmws.layers.weight_cache as weight_cache
from mmws import ConvTransposeWS2d, ConvWS2d, convert_, fold, standardize_weight
from mmws.experiments.benchmark.convs import MmcvConv, use_convs_
from mmws.ops.kernels import standardize_filters, standardize_together
from tests.gpu.networks import ResNet

__all__ = ['NotHere', 'all_checks']


class NotHere(Exception):  # noqa: N818
    """The check does not apply to the device."""


def all_checks() -> dict[str, Callable[[str], None]]:
    """Return the checks by name, in the order of the file."""
    return {name: value for name, value in globals().items() if name.startswith('check_')}


def formula(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the standardized weight by the authors' formula, and the gradient of the sum of its cubes."""
    raw = conv.weight.detach().double().requires_grad_()
    rows = (raw.transpose(0, 1) if isinstance(conv, ConvTransposeWS2d) else raw).flatten(1)
    mean, std = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
    axis = 1 if isinstance(conv, ConvTransposeWS2d) else 0
    shape = [-1 if dimension == axis else 1 for dimension in range(raw.dim())]
    standardized = (raw - mean.view(shape)) / (std.view(shape) + conv.eps)
    return standardized.detach(), torch.autograd.grad(standardized.pow(3).sum(), raw)[0]


def assert_fresh(net: nn.Module) -> None:
    """Assert that each layer has the standardized form of its weight as it is now, and its gradient."""
    for name, conv in net.named_modules():
        if isinstance(conv, (ConvWS2d, ConvTransposeWS2d)):
            expected, gradient = formula(conv)
            with torch.no_grad():
                assert_close(conv.standardized_weight(), expected, f'the cached weight of {name or "the layer"}')
            trained = conv.standardized_weight()
            assert_close(trained, expected, f'the weight of {name or "the layer"} with a gradient')
            found = torch.autograd.grad(trained.double().pow(3).sum(), conv.weight)[0]
            assert_close(found, gradient, f'the gradient of {name or "the layer"}')


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = 2e-4) -> None:
    """Assert that the largest error is at most ``tolerance`` times the largest value."""
    error = (found.double() - expected.double()).abs().max().item()
    limit = tolerance * max(expected.double().abs().max().item(), 1e-6)
    assert error <= limit, f'{what} is wrong by {error:.3g}, expected at most {limit:.3g}'


def layer(device: str, **options: Any) -> ConvWS2d:
    """Return a layer with a filled cache."""
    torch.manual_seed(0)
    conv = ConvWS2d(16, 32, 3, **options).to(device)
    assert_fresh(conv)
    return conv


def small_net(device: str) -> ResNet:
    """Return a network with a filled cache."""
    torch.manual_seed(0)
    net = ResNet(8, ConvWS2d, width=16).to(device)
    assert_fresh(net)
    return net


def two_layers(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(ConvWS2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), ConvWS2d(16, 16, 3),
                         nn.GroupNorm(4, 16)).to(device)


def images(device: str, batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 3, 64, 64).to(device)


def train(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Take one step; without an optimizer write the weights by hand, as some trainers do."""
    net(x).square().mean().backward()
    if optimizer is not None:
        optimizer.step()
    for parameter in net.parameters():
        if optimizer is None:
            parameter.data.add_(parameter.grad, alpha=-0.1)
        parameter.grad = None


def new_values(conv: nn.Module) -> Tensor:
    return torch.randn_like(conv.weight)


def needs_cuda(device: str, what: str) -> None:
    if device != 'cuda':
        raise NotHere(f'{what}: not on {device}')


@contextmanager
def batched_on(device: str) -> Iterator[None]:
    """Standardize the weights of a step together, as on CUDA."""
    before = weight_cache.BATCHED_DEVICES
    weight_cache.BATCHED_DEVICES = {device}
    try:
        yield
    finally:
        weight_cache.BATCHED_DEVICES = before


def compiled(net: nn.Module, device: str, mode: str | None = None) -> Any:
    """Compile with inductor on CUDA; on a CPU without its code generation, which needs a C++ compiler."""
    torch.compiler.reset()
    return torch.compile(net, mode=mode) if device == 'cuda' else torch.compile(net, backend='aot_eager')


def check_formula_and_gradient(device: str) -> None:
    """Values and gradients are those of the authors' formula; a constant filter gives zeros."""
    torch.manual_seed(0)
    for shape in ((8, 4, 3, 3), (64, 3, 7, 7), (5, 6, 1, 1), (512, 512, 3, 3)):
        conv = ConvWS2d(shape[1], shape[0], shape[2]).to(device)
        assert_fresh(conv)
        functional = standardize_weight(conv.weight, conv.eps)
        assert_close(functional, formula(conv)[0], 'standardize_weight')
    conv.weight.data[0] = 7
    assert conv.standardized_weight()[0].abs().max() == 0, 'a constant filter does not give zeros'


def check_optimizer_step(device: str) -> None:
    """Each kind of optimizer kernel makes the cached weights new: SGD, AdamW; for each, foreach, fused."""
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        for options in ({'foreach': False}, {'foreach': True}, {'fused': True}):
            conv = layer(device)
            optimizer = kind(conv.parameters(), lr=0.1, **options)
            for _ in range(2):
                train(conv, torch.randn(2, 16, 8, 8, device=device), optimizer)
                assert_fresh(conv)


def check_data_write(device: str) -> None:
    """Writes through ``.data``, also to one element and through an older reference, are seen."""
    conv = layer(device)
    held = conv.weight.data
    for write in (lambda: conv.weight.data.neg_(), lambda: conv.weight.data.view(-1)[17:18].add_(1),
                  lambda: held.mul_(torch.rand_like(held)), lambda: setattr(conv.weight, 'data', new_values(conv))):
        write()
        assert_fresh(conv)


def check_load_state_dict(device: str) -> None:
    """Loaded weights are seen, copied or assigned."""
    conv = layer(device)
    for assign in (False, True):
        conv.load_state_dict({'weight': new_values(conv), 'bias': conv.bias.detach()}, assign=assign)
        assert_fresh(conv)


def check_set(device: str) -> None:
    """``Tensor.set_`` gives the weight another memory, which is seen."""
    conv = layer(device)
    for _ in range(2):
        values = new_values(conv)
        with torch.no_grad():
            conv.weight.set_(values)
        assert torch.equal(conv.weight, values)
        assert_fresh(conv)


def check_moved(device: str) -> None:
    """A layer that went to another dtype, memory format or device, and came back, is right."""
    conv = layer(device)
    for there in (lambda: conv.double(), lambda: conv.float(), lambda: conv.to(memory_format=torch.channels_last),
                  lambda: conv.cpu(), lambda: conv.to(device)):
        there()
        assert_fresh(conv)


def check_another_stream(device: str) -> None:
    """On another stream a forward pass waits for nothing and is right, after writes on either stream."""
    needs_cuda(device, 'CUDA streams')
    conv, stream = layer(device), torch.cuda.Stream()
    for _ in range(5):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            assert_fresh(conv)
            conv.weight.data.mul_(torch.rand_like(conv.weight))
            assert_fresh(conv)
        torch.cuda.current_stream().wait_stream(stream)
        assert_fresh(conv)
        conv.weight.data.neg_()


def check_hand_written_steps_on_another_stream(device: str) -> None:
    """Writes behind pending work of a stream are not lost: copy-on-write copies on the default stream."""
    needs_cuda(device, 'CUDA streams')
    conv, stream = layer(device), torch.cuda.Stream()
    expected = conv.weight.detach().cpu().clone()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for number in range(50):
            torch.cuda._sleep(200_000)  # keeps the writes pending
            conv(torch.ones(1, 16, 8, 8, device=device))
            conv.weight.data.add_(number)
            expected.add_(number)
    torch.cuda.synchronize()
    assert torch.equal(conv.weight.cpu(), expected), 'a write on another stream was lost'


def check_cuda_graph_of_inference(device: str) -> None:
    """A graph reads the weights as they are at each replay: after loads, writes and forward passes outside of it."""
    needs_cuda(device, 'CUDA graphs')
    x, stream = images(device), torch.cuda.Stream()
    for same_stream in (False, True):  # as the warm-up
        net = small_net(device).eval()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(3):
                net(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph, stream=stream if same_stream else None):
            out = net(x)
        for _ in range(3):
            with torch.no_grad():
                net(x)
            for parameter in net.parameters():
                parameter.data.mul_(torch.rand_like(parameter) + 0.5)
            graph.replay()
            assert_close(out, fold(copy.deepcopy(net))(x), 'the output of a replay', 2e-3)


def check_cuda_graph_of_training(device: str) -> None:
    """Replays of a whole training step change the weights; a forward pass outside of the graph sees each change."""
    needs_cuda(device, 'CUDA graphs')
    net, x, stream = small_net(device), images(device), torch.cuda.Stream()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train(net, x, optimizer)
    torch.cuda.current_stream().wait_stream(stream)
    plain = copy.deepcopy(net)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x).square().mean().backward()
        optimizer.step()
    for number in range(3):
        assert_fresh(net)
        graph.replay()
        train(plain, x, plain_optimizer)
        for (name, found), expected in zip(net.named_parameters(), plain.parameters()):
            assert_close(found, expected, f'{name} after replay {number}', 2e-3)


def check_compiled(device: str) -> None:
    """A compiled network sees each change of its weights, in training and inference, beside eager forward passes."""
    _check_compiled(device, None)


def check_compiled_reduce_overhead(device: str) -> None:
    """The same with ``mode='reduce-overhead'``: torch captures CUDA graphs of the compiled network."""
    needs_cuda(device, 'reduce-overhead, which captures CUDA graphs')
    _check_compiled(device, 'reduce-overhead')


def _check_compiled(device: str, mode: str | None) -> None:
    net = two_layers(device)
    fast, x = compiled(net, device, mode), images(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for number in range(5):
        for write in (lambda: train(fast, x, optimizer), lambda: net[0].weight.data.neg_(),
                      lambda: net.load_state_dict({name: torch.rand_like(value) for name, value in
                                                   net.state_dict().items()})):
            write()
            with torch.no_grad():
                expected = fold(copy.deepcopy(net).eval())(x)
                assert_close(fast(x).clone(), expected, f'the compiled output in round {number}', 2e-3)
                assert_close(net(x), expected, f'the eager output in round {number}', 2e-3)


def check_amp(device: str) -> None:
    """Under autocast to bfloat16 and float16 (with GradScaler) gradients are those of mmcv's formula, never stale."""
    x = images(device)
    for dtype in (torch.bfloat16, torch.float16):
        net = two_layers(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler(device, init_scale=128., enabled=dtype == torch.float16)
        for number in range(3):
            reference = copy.deepcopy(net)
            use_convs_(reference, MmcvConv)
            for each in (net, reference):
                with torch.autocast(device, dtype):
                    loss = each(x).float().pow(4).mean()
                scaler.scale(loss).backward()
            for (name, found), expected in zip(net.named_parameters(), reference.parameters()):
                assert_close(found.grad, expected.grad, f'the gradient of {name} in {dtype}, step {number}', 0.05)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            with torch.autocast(device, dtype):
                assert_fresh(net)


def check_half_weights(device: str) -> None:
    """Weights in float16 and bfloat16 get float32 statistics: the error is that of rounding the result."""
    for dtype in (torch.bfloat16, torch.float16):
        conv = ConvWS2d(16, 32, 3).to(device, dtype)
        for _ in range(2):
            assert_close(conv.standardized_weight(), formula(conv)[0], f'the weight in {dtype} with a gradient', 1e-2)
            with torch.inference_mode():
                cached = conv.standardized_weight()
            assert_close(cached, formula(conv)[0], f'the cached weight in {dtype}', 1e-2)
            conv.weight.data.neg_()


def check_channels_last(device: str) -> None:
    """A channels_last network has channels_last weights, and the outputs and gradients of the contiguous one."""
    net, x = small_net(device), images(device)
    expected = torch.autograd.grad(net(x).square().mean(), net.blocks[1].conv2.weight)[0]
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    out = last(x.to(memory_format=torch.channels_last))
    assert_close(out, net(x), 'the output', 2e-3)
    gradient = torch.autograd.grad(out.square().mean(), last.blocks[1].conv2.weight)[0]
    assert_close(gradient, expected, 'the gradient', 1e-2)
    weight = last.blocks[1].conv2.standardized_weight()
    assert weight.is_contiguous(memory_format=torch.channels_last), 'the standardized weight is not channels_last'
    train(last, x, torch.optim.SGD(last.parameters(), lr=0.1))
    assert_fresh(last)


def check_together_equals_one_by_one(device: str) -> None:
    """All weights of one step, standardized together in a few kernels, equal those standardized one by one."""
    net, x = small_net(device), images(device)
    weights = [module.weight for module in net.modules() if isinstance(module, ConvWS2d)]
    for weight, results in zip(weights, standardize_together(weights, 1e-5)):
        for found, expected in zip(results, standardize_filters(weight, 1e-5)):
            assert_close(found, expected, 'a weight of a batch', 1e-5)
    calls: list[int] = []
    original = weight_cache.standardize_together
    weight_cache.standardize_together = lambda *args: calls.append(len(args[0])) or original(*args)
    try:
        with batched_on(device):
            train(net, x, torch.optim.SGD(net.parameters(), lr=0.1))
            net(x)
        assert calls == [len(weights)], f'expected one batch of {len(weights)} weights, got {calls}'
        assert_fresh(net)
    finally:
        weight_cache.standardize_together = original


def check_second_forward_before_backward(device: str) -> None:
    """A forward pass after a change of the weights does not change the gradients of the one before."""
    conv, x = layer(device), torch.randn(2, 16, 8, 8, device=device)
    expected = torch.autograd.grad(conv(x).square().sum(), conv.weight)[0]
    first = conv(x)
    conv.weight.data.normal_()
    conv(x)
    assert_close(torch.autograd.grad(first.square().sum(), conv.weight)[0], expected, 'the gradient of the first pass')


def check_activation_checkpointing(device: str) -> None:
    """Gradients with activation checkpointing equal those without."""
    net, x = small_net(device), images(device)
    expected = torch.autograd.grad(net(x).square().mean(), net.stem[0].weight)[0]
    for reentrant in (False, True):
        out = checkpoint(net, x.clone().requires_grad_(), use_reentrant=reentrant)
        out.square().mean().backward()
        assert_close(net.stem[0].weight.grad, expected, 'the gradient', 2e-3)
        net.zero_grad()


def check_copies_and_pickles(device: str) -> None:
    """Copies and pickles have their own weights and no cache."""
    conv = layer(device)
    for copied in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert copied._cache is None, 'the cache was copied'
        copied.weight.data.neg_()
        assert_fresh(copied)
        assert_fresh(conv)


def check_transposed(device: str) -> None:
    """Transposed convolutions standardize the filters of their outputs, and stay fresh."""
    torch.manual_seed(0)
    conv = ConvTransposeWS2d(8, 4, 2, stride=2).to(device)
    for _ in range(3):
        assert_fresh(conv)
        train(conv, torch.randn(2, 8, 8, 8, device=device), torch.optim.SGD(conv.parameters(), lr=0.1))


def check_ddp(device: str) -> None:
    """Steps under DistributedDataParallel (NCCL on CUDA, gloo on CPU; one process) equal those without."""
    plain = two_layers(device)
    net, x = copy.deepcopy(plain), images(device)
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group('nccl' if device == 'cuda' else 'gloo', init_method=f'file://{folder}/store',
                                       rank=0, world_size=1)
        try:
            parallel = nn.parallel.DistributedDataParallel(net, device_ids=[0] if device == 'cuda' else None)
            optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (parallel, plain)]
            for number in range(3):
                train(parallel, x, optimizers[0])
                train(plain, x, optimizers[1])
                distributed.broadcast(net[0].weight.data, 0)
                assert_fresh(net)
                for found, expected in zip(net.parameters(), plain.parameters()):
                    assert_close(found, expected, f'a weight after step {number}', 2e-3)
        finally:
            distributed.destroy_process_group()


def check_conversion_and_folding(device: str) -> None:
    """A converted ResNet (50 and 101 on CUDA, 8 on CPU) equals one built with GN+WS, and its folded copy."""
    for depth, convs in ((50, 53), (101, 104)) if device == 'cuda' else ((8, 9), ):
        net = ResNet(depth, nn.Conv2d, batch_norm=True, width=64 if device == 'cuda' else 16).to(device)
        report = convert_(net)
        assert len(report.converted) == convs, f'ResNet-{depth}: {len(report.converted)} of {convs} convolutions'
        built = ResNet(depth, ConvWS2d, width=64 if device == 'cuda' else 16).to(device)
        built.load_state_dict(net.state_dict())
        x = images(device)
        assert_close(net(x), built(x), f'ResNet-{depth}: the output', 2e-3)
        train(net, x, torch.optim.SGD(net.parameters(), lr=0.01))
        net.eval()
        folded = fold(net)
        assert not any(isinstance(module, ConvWS2d) for module in folded.modules()), 'the fold left standardized layers'
        with torch.no_grad():
            assert_close(folded(x), net(x), f'ResNet-{depth}: the folded output', 2e-3)

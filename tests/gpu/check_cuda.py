"""Checks of CUDA streams and graphs, and of compiled networks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mmws import fold
from tests.gpu.compare import assert_close, assert_fresh, images, layer, small_net, train, two_layers


class NotHere(Exception):  # noqa: N818
    """The check does not apply to the device."""


def needs_cuda(device: str, what: str) -> None:
    if device != 'cuda':
        raise NotHere(f'{what}: not on {device}')


def compiled(net: nn.Module, device: str, mode: str | None = None) -> Any:
    """Compile with inductor on CUDA; on a CPU without its code generation, which needs a C++ compiler."""
    torch.compiler.reset()
    return torch.compile(net, mode=mode) if device == 'cuda' else torch.compile(net, backend='aot_eager')


def check_another_stream(device: str) -> None:
    """On another stream a forward pass is right, after writes on either stream."""
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
    expected, busy = conv.weight.detach().cpu().clone(), torch.ones(4096, 4096, device=device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for number in range(50):
            busy @ busy  # keeps the writes pending
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

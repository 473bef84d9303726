"""Checks of networks: AMP, memory formats, batches of weights, DDP, conversion and folding."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

import mmws.layers.weight_cache as weight_cache
from mmws import ConvWS2d, convert_, fold
from mmws.experiments.benchmark.convs import MmcvConv, use_convs_
from mmws.ops.kernels import standardize_filters, standardize_together
from tests.gpu.compare import assert_close, assert_fresh, images, small_net, train, two_layers
from tests.gpu.networks import ResNet


@contextmanager
def batched_on(device: str) -> Iterator[None]:
    """Standardize the weights of a step together, as on CUDA."""
    before = weight_cache.BATCHED_DEVICES
    weight_cache.BATCHED_DEVICES = {device}
    try:
        yield
    finally:
        weight_cache.BATCHED_DEVICES = before


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


def check_activation_checkpointing(device: str) -> None:
    """Gradients with activation checkpointing equal those without."""
    net, x = small_net(device), images(device)
    expected = torch.autograd.grad(net(x).square().mean(), net.stem[0].weight)[0]
    for reentrant in (False, True):
        out = checkpoint(net, x.clone().requires_grad_(), use_reentrant=reentrant)
        out.square().mean().backward()
        assert_close(net.stem[0].weight.grad, expected, 'the gradient', 2e-3)
        net.zero_grad()


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

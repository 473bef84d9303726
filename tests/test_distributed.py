import os
import socket

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mmws import ConvWS2d

RANKS = 2


def build(seed):
    torch.manual_seed(seed)
    return nn.Sequential(ConvWS2d(4, 8, 3), nn.GroupNorm(4, 8), nn.GELU(), ConvWS2d(8, 4, 3)).double()


def train(net, rank, steps=3):
    """Losses of a few steps, each followed by a forward pass without a gradient."""
    images = torch.randn(steps, RANKS, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for batch in images:
        # the gradient is averaged over ranks: so is that of all images at once
        out = net(batch[rank] if rank is not None else batch.flatten(0, 1)).square().mean()
        out.backward()
        update.step()
        update.zero_grad()
        with torch.no_grad():
            losses.append(net(batch.flatten(0, 1)).square().mean().item())
    return losses


def shard(net):
    for conv in (net[0], net[3]):
        fully_shard(conv, mesh=init_device_mesh('cpu', (RANKS,)))
    return fully_shard(net, mesh=init_device_mesh('cpu', (RANKS,)))


def warm_ddp(net):
    """Parameters differ between the ranks, and are kept, until rank 0 sends its own."""
    with torch.no_grad():
        net(torch.zeros(1, 4, 8, 8, dtype=torch.float64))
    return DistributedDataParallel(net)


def run(rank, port, wrap, losses):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(RANKS))
    torch.set_num_threads(1)
    distributed.init_process_group('gloo')
    losses[rank] = train(wrap(build(rank if wrap is warm_ddp else 0)), rank)
    distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize('wrap', [warm_ddp, shard])
def test_two_processes_train_as_one(wrap):
    port = free_port()
    with multiprocessing.Manager() as manager:
        losses = manager.dict()
        multiprocessing.spawn(run, (port, wrap, losses), RANKS)
        torch.testing.assert_close([*losses.values()], [train(build(0), None)] * RANKS)

"""Several processes with one image each reach the same weights as one process with all images."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmseg.models import SegDataPreProcessor
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from mmws import ConvWS2d
from tests.helpers.commands import free_port
from tests.helpers.versions import needs_torch

try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
except ImportError:
    fully_shard = None

RANKS = 2
needs_fully_shard = needs_torch('2.6', 'fully_shard', fully_shard is not None)


def build(seed):
    torch.manual_seed(seed)
    return nn.Sequential(ConvWS2d(4, 8, 3), nn.GroupNorm(4, 8), nn.GELU(), ConvWS2d(8, 4, 3)).double()


def train(net, rank, steps=3):
    """Train a few steps; return the loss after each, from a forward pass without gradients."""
    images = torch.randn(steps, RANKS, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for batch in images:
        # distributed training averages the gradient over ranks; here the mean over all images does the same
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
    """Fill the weight cache with parameters that differ between ranks; then rank 0 broadcasts its own."""
    with torch.no_grad():
        net(torch.zeros(1, 4, 8, 8, dtype=torch.float64))
    return DistributedDataParallel(net)


@contextmanager
def joined(rank, port):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
                      WORLD_SIZE=str(RANKS))
    torch.set_num_threads(1)
    distributed.init_process_group('gloo')
    yield
    distributed.destroy_process_group()


def run(rank, port, wrap, losses):
    with joined(rank, port):
        losses[rank] = train(wrap(build(rank if wrap is warm_ddp else 0)), rank)


@pytest.mark.parametrize('wrap', [warm_ddp, pytest.param(shard, marks=needs_fully_shard)])
def test_two_processes_train_as_one(wrap):
    port = free_port()
    with multiprocessing.Manager() as manager:
        losses = manager.dict()
        multiprocessing.spawn(run, (port, wrap, losses), RANKS)
        torch.testing.assert_close([*losses.values()], [train(build(0), None)] * RANKS)


@MODELS.register_module()
class Double(SegDataPreProcessor):
    """mmseg's preprocessor with output in float64."""

    def forward(self, data, training=False):
        data = super().forward(data, training)
        return {**data, 'inputs': data['inputs'].double()}


DDP = {'type': 'MMDistributedDataParallel', 'device_ids': None}
RUNS = {  # type, model wrapper, images per step and process, batches per update
    'one process': ('mmws.EncoderDecoder', None, 2, 1),
    'accumulated': ('mmws.EncoderDecoder', None, 1, 2),
    'DDP': ('mmws.EncoderDecoder', DDP, 1, 1),
    **({'FSDP2': ('mmws.EncoderDecoder', fully_shard, 1, 1)} if fully_shard else {}),
    'BN, one process': ('EncoderDecoder', None, 2, 1),
    'BN, DDP': ('EncoderDecoder', DDP, 1, 1),
}
UPDATES = 20


def segmenter(name: str, digits: Path, work_dir: Path) -> Config:
    prefix, wrapper, batch_size, accumulated = RUNS[name]
    norm = {'type': 'BN', 'requires_grad': True}
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}, {'type': 'Resize', 'scale': (128, 128)},
                {'type': 'PackSegInputs'}]
    dataset = {'type': 'BaseSegDataset', 'data_root': str(digits), 'pipeline': pipeline, 'metainfo': {
        'classes': ('background', *'0123456789')},
        'data_prefix': {'img_path': 'images/train', 'seg_map_path': 'masks/train'}}
    return Config({
        'env_cfg': {},  # mmengine 0.7 needs it
        'default_scope': 'mmseg', 'work_dir': str(work_dir), 'experiment_name': name, 'randomness': {'seed': 0},
        'launcher': 'pytorch' if wrapper is DDP else 'none', 'model_wrapper_cfg': wrapper if wrapper is DDP else None,
        'model': {
            'type': prefix,
            'data_preprocessor': {'type': 'Double', 'size': (128, 128), 'mean': [123.675] * 3, 'std': [58] * 3},
            'backbone': {'type': 'ResNet', 'depth': 18, 'base_channels': 16, 'norm_cfg': norm},
            'decode_head': {'type': 'FCNHead', 'in_channels': 128, 'channels': 16, 'num_classes': 11, 'norm_cfg': norm,
                            'num_convs': 1, 'dropout_ratio': 0}},
        'train_dataloader': {'batch_size': batch_size, 'num_workers': 0, 'dataset': dataset,
                             'sampler': {'type': 'InfiniteSampler', 'shuffle': True, 'seed': 0}},
        'train_cfg': {'by_epoch': False, 'max_iters': UPDATES * accumulated, 'val_interval': 1000},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.01, 'momentum': 0.9},
                          'accumulative_counts': accumulated},
        'default_hooks': {'guard': {'type': 'mmws.GuardHook'}, 'checkpoint': None, 'logger': None}})


def weights_after(name, digits, work_dir):
    runner = Runner.from_cfg(segmenter(name, digits, work_dir / name))
    runner._init_model_weights()  # now, so that all runs use the same random numbers
    runner._init_model_weights = lambda: None
    if name == 'FSDP2':  # unknown to mmengine
        runner.model = fully_shard(runner.model, mesh=init_device_mesh('cpu', (RANKS,)))
    model = runner.train()
    weights = getattr(model, 'module', model).state_dict()
    return {key: getattr(value, 'full_tensor', lambda value=value: value)() for key, value in weights.items()}


def train_all(rank, port, digits, work_dir):
    torch.set_default_dtype(torch.float64)
    with joined(rank, port):
        weights = {name: weights_after(name, digits, work_dir) for name in RUNS if RUNS[name][1]}
    for name in [name for name in RUNS if not RUNS[name][1]][rank::RANKS]:
        weights[name] = weights_after(name, digits, work_dir)
    torch.save(weights, work_dir / f'{rank}.pth')


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """Return the final weights of each run."""
    folder = tmp_path_factory.mktemp('processes')
    multiprocessing.spawn(train_all, (free_port(), digits, folder), RANKS)
    return {**torch.load(folder / '0.pth'), **torch.load(folder / '1.pth')}


def distance(trained, one, other):
    return max(float((trained[one][key] - trained[other][key]).abs().max()) for key in trained[one])


@pytest.mark.parametrize('name', ['DDP', pytest.param('FSDP2', marks=needs_fully_shard), 'accumulated'])
def test_twenty_updates_of_the_runner_reach_the_same_weights(name, trained):
    assert distance(trained, name, 'one process') < 1e-6


def test_twenty_updates_with_batch_norm_reach_other_weights(trained):
    assert distance(trained, 'BN, DDP', 'BN, one process') > 0.01

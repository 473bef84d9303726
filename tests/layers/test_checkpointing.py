"""Norms with estimates have the same gradients and buffers with activation checkpointing as without."""

import copy
import pickle

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmws import convert_
from mmws.layers.batch_channel_norm import BatchChannelNorm, EstimatedBatchChannelNorm, EstimatedBatchNorm
from mmws.layers.switchable_norm import SwitchableNorm
from tests.helpers.pairs import pairs

NORMS = [SwitchableNorm, BatchChannelNorm, EstimatedBatchChannelNorm, EstimatedBatchNorm]


def block(norm):
    return nn.Sequential(nn.Conv2d(4, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=2), norm(4)).double()


def train(net, use_reentrant):
    """Take two steps; each accumulates two backward passes, and each pass runs the network on two levels."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(2):
            loss = torch.zeros((), dtype=torch.float64)
            for scale in (1, 3):
                x = scale * torch.randn(2, 4, 9, 9, generator=generator, dtype=torch.float64).requires_grad_()
                out = net(x) if use_reentrant is None else checkpoint(net, x, use_reentrant=use_reentrant)
                loss = loss + (scale * out ** 3).mean()
            loss.backward()
        optimizer.step()
    return [parameter.grad for parameter in net.parameters()], list(net.buffers())


@pytest.mark.parametrize('use_reentrant', [False, True])
@pytest.mark.parametrize('norm', NORMS)
def test_gradients_and_buffers_do_not_depend_on_checkpointing(norm, use_reentrant):
    net = block(norm)
    plain, checkpointed = train(copy.deepcopy(net), None), train(copy.deepcopy(net), use_reentrant)
    for without, with_checkpointing in pairs(plain, checkpointed):
        torch.testing.assert_close(with_checkpointing, without)


def test_copies_and_pickles_do_not_contain_recent_passes():
    norm = EstimatedBatchNorm(4)
    norm(torch.randn(2, 4, 5, 5))
    assert norm._recent
    for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert copied._recent is None
        assert torch.equal(copied.running_mean, norm.running_mean)


@pytest.mark.parametrize('norm', ['SN', 'BCN', 'EstBN'])
def test_a_backbone_with_checkpointing(norm, mmdet_scope):
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        net = MODELS.build({'type': 'ResNet', 'depth': 18, 'with_cp': with_cp, 'norm_eval': False})
        convert_(net, norm=norm)
        net.double().train()
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64).requires_grad_()
        sum(out.square().mean() for out in net(x)).backward()
        results.append(([parameter.grad for parameter in net.parameters()], list(net.buffers())))
    torch.testing.assert_close(results[1], results[0])

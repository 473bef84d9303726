from __future__ import annotations

import copy
import pickle

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmcv.cnn.bricks.conv_ws import ConvAWS2d
from mmcv.cnn.bricks.conv_ws import ConvWS2d as MmcvConvWS2d
from mmcv.cnn.bricks.wrappers import Conv2d as MmcvConv2d
from mmcv.ops import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack
from mmdet.models.backbones.trident_resnet import TridentConv
from torch import Tensor, nn
from torch.nn import functional

from mmws import ConvWS2d, convert_, standardize_weight
from mmws.conversion.swap_convs import standardize_conv_, standardized_class, standardizes_itself


@pytest.mark.parametrize('plain', [nn.Conv2d, MmcvConv2d, MmcvConvWS2d])
def test_the_module_keeps_identity_parameters_hooks_and_mode(plain):
    conv = plain(4, 6, 3).eval()
    conv.weight.requires_grad_(False)
    weight, calls = conv.weight, []
    conv.register_forward_hook(lambda *_: calls.append(1))
    assert standardize_conv_(conv, eps=1e-3) is conv
    assert type(conv) is ConvWS2d
    assert (conv.weight is weight, conv.training, conv.weight.requires_grad, conv.eps) == (True, False, False, 1e-3)
    conv(torch.randn(1, 4, 5, 5))
    assert calls == [1]


def deformed(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a 3x3 deformable convolution with stride 1 and padding 1, tap by tap as in arXiv 1811.11168."""
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    out = torch.zeros(len(x), len(weight), height, width, dtype=x.dtype)
    for tap in range(9):
        y, across = rows + tap // 3 - 1 + offset[:, 2 * tap], columns + tap % 3 - 1 + offset[:, 2 * tap + 1]
        grid = torch.stack([across * 2 / (width - 1) - 1, y * 2 / (height - 1) - 1], -1)
        sampled = functional.grid_sample(x, grid, align_corners=True) * mask[:, tap, None]
        out = out + torch.einsum('nchw,oc->nohw', sampled, weight[:, :, tap // 3, tap % 3])
    return out if bias is None else out + bias[:, None, None]


@pytest.mark.parametrize('kind', [DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack])
def test_deformable_convs_use_the_standardized_weight(kind):
    bias = {'bias': True} if kind in (ModulatedDeformConv2d, ModulatedDeformConv2dPack) else {}
    conv = standardize_conv_(kind(4, 6, 3, padding=1, **bias)).double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    offset, mask = torch.randn(2, 18, 7, 8).double(), torch.ones(2, 9, 7, 8).double()
    given = [offset]
    if bias:
        mask = torch.rand(2, 9, 7, 8).double()
        given.append(mask)
    if hasattr(conv, 'conv_offset'):
        nn.init.normal_(conv.conv_offset.weight, std=0.1)
        offset, given = conv.conv_offset(x), []
        if bias:
            first, second, mask = offset.chunk(3, dim=1)
            offset, mask = torch.cat([first, second], dim=1), mask.sigmoid()
    expected = deformed(x, offset, mask, standardize_weight(conv.weight), conv.bias if bias else None)
    torch.testing.assert_close(conv(x, *given), expected)
    conv(x, *given).square().sum().backward()
    assert conv.weight.grad.isfinite().all()
    assert conv.weight.grad.abs().sum() > 0


def test_a_deformable_pack_is_standardized_and_its_offset_conv_stays_plain():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = ModulatedDeformConv2dPack(3, 8, 3, padding=1)
            self.relu, self.norm = nn.ReLU(), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.relu(self.norm(self.conv(x)))

    torch.manual_seed(0)
    report = convert_(net := Block())
    assert report.converted == ['conv']
    assert 'conv.conv_offset' in report.skipped
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    x, losses = torch.randn(2, 3, 8, 8), []
    for _ in range(10):
        losses.append(functional.mse_loss(net(x), torch.ones(2, 8, 8, 8)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(('conv', 'x'), [
    (Conv2dAdaptivePadding(4, 6, 3, stride=2), torch.randn(1, 4, 7, 7)),
    (TridentConv(4, 6, 3), [torch.randn(1, 4, 9, 9)] * 3),
    (DeformConv2dPack(4, 6, 3, padding=1), torch.randn(1, 4, 9, 9)),
], ids=lambda value: type(value).__name__)
def test_convs_of_other_libraries_run_their_forward_and_can_be_copied_and_pickled(conv, x):
    nn.init.normal_(conv.weight)  # mmdet's TridentConv does not initialize it
    plain = copy.deepcopy(conv)
    plain.weight.data = standardize_weight(conv.weight.data)
    raw = conv.weight
    standardize_conv_(conv)
    assert conv.weight is raw
    assert isinstance(conv, type(plain))
    assert list(conv.state_dict()) == list(plain.state_dict())
    for replica in (conv, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert type(replica) is type(conv) is standardized_class(plain)
        torch.testing.assert_close(replica(x), plain(x))


def test_mmcvs_other_variant_counts_as_standardized():
    net = nn.Sequential(conv := ConvAWS2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    report = convert_(net)
    assert report.skipped == {
        '0': 'already standardized, in the form of DetectoRS: gamma * (w - mean) / sqrt(var + 1e-5) + beta'}
    assert type(conv) is ConvAWS2d
    assert standardizes_itself(conv)

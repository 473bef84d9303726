"""Reference implementations of the authors' formula and their DeepLabv3, written from their description."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def authors(weight: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Standardize as joe-siyuan-qiao/pytorch-classification describes: unbiased std, eps outside the root."""
    rows = weight.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    return (centred / (rows.std(1, keepdim=True) + eps)).view_as(weight)


class Authors:
    """chenxi116/DeepLabv3.pytorch as a function of a state dict with the names of mmseg."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def conv(self, x, name, stride=1, dilation=1):
        weight = self.weights[f'{name}.weight']
        rows = weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-5)
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, rows.view_as(weight), None, stride, padding, dilation)

    def norm(self, x, name):
        return F.group_norm(x, 32, self.weights[f'{name}.weight'], self.weights[f'{name}.bias'], 1e-5)

    def block(self, x, name, stride, dilation, shortcut):
        out = F.relu(self.norm(self.conv(x, f'{name}.conv1'), f'{name}.gn1'))
        out = F.relu(self.norm(self.conv(out, f'{name}.conv2', stride, dilation), f'{name}.gn2'))
        out = self.norm(self.conv(out, f'{name}.conv3'), f'{name}.gn3')
        if shortcut:
            x = self.norm(self.conv(x, f'{name}.downsample.0', stride), f'{name}.downsample.1')
        return F.relu(out + x)

    def backbone(self, x):
        x = F.relu(self.norm(self.conv(x, 'backbone.conv1', 2), 'backbone.gn1'))
        x = F.max_pool2d(x, 3, 2, 1)
        for layer, (blocks, stride) in enumerate([(3, 1), (4, 2), (23, 2), (3, 1)], 1):
            for i in range(blocks):
                dilation = 2 if layer == 4 and i > 0 else 1
                x = self.block(x, f'backbone.layer{layer}.{i}', stride if i == 0 else 1, dilation, i == 0)
        return x

    def branch(self, x, name, dilation=1):
        return F.relu(self.norm(self.conv(x, f'decode_head.{name}.conv', 1, dilation), f'decode_head.{name}.gn'))

    def logits(self, image):
        x = self.backbone(image)
        branches = [self.branch(x, f'aspp_modules.{i}', rate) for i, rate in enumerate((1, 6, 12, 18))]
        pooled = self.branch(x.mean((2, 3), keepdim=True), 'image_pool.1')
        branches.append(F.interpolate(pooled, x.shape[2:], mode='bilinear', align_corners=True))
        x = self.branch(torch.cat(branches, 1), 'bottleneck')
        x = F.conv2d(x, self.weights['decode_head.conv_seg.weight'], self.weights['decode_head.conv_seg.bias'])
        return F.interpolate(x, image.shape[2:], mode='bilinear', align_corners=True)

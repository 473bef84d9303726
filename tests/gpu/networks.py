"""ResNets in plain torch, as torchvision and mmdet define them: the stride is in the 3x3 convolution."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ['ResNet']

BLOCKS = {8: (1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """Three convolutions with norms, and a shortcut."""

    def __init__(self, channels: int, inner: int, stride: int, conv: type[nn.Conv2d], batch_norm: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, inner, 1, bias=False), _norm(inner, batch_norm)
        self.conv2, self.norm2 = conv(inner, inner, 3, stride, 1, bias=False), _norm(inner, batch_norm)
        self.conv3, self.norm3 = conv(inner, 4 * inner, 1, bias=False), _norm(4 * inner, batch_norm)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential() if channels == 4 * inner else nn.Sequential(
            conv(channels, 4 * inner, 1, stride, bias=False), _norm(4 * inner, batch_norm))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm3(self.conv3(self.relu(self.norm2(self.conv2(y)))))
        return self.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-8 (the first two stages, one block each), -50 or -101 with a linear classifier.

    Args:
        depth: a key of :data:`BLOCKS`.
        conv: class of all convolutions.
        batch_norm: BatchNorm instead of GroupNorm with up to 32 groups.
        width: channels of the stem; 64 in the paper.

    Example:
        >>> import torch
        >>> ResNet(8, nn.Conv2d, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int, conv: type[nn.Conv2d], batch_norm: bool = False, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, width, 7, 2, 3, bias=False), _norm(width, batch_norm), nn.ReLU(inplace=True),
                                  nn.MaxPool2d(3, 2, 1))
        channels, stages = width, []
        for stage, blocks in enumerate(BLOCKS[depth]):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                stages.append(Bottleneck(channels, width * 2 ** stage, stride, conv, batch_norm))
                channels = 4 * width * 2 ** stage
        self.blocks, self.classify = nn.Sequential(*stages), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.GroupNorm(min(32, channels), channels)

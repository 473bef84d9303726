"""A 3-D residual network for video in plain PyTorch, converted with `mmws.convert_`.

The data is random: a bright square moves left, right, up or down, and the network predicts the direction. The batch
size is 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import mmws


class Block(nn.Module):
    """A residual block over (time, height, width)."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.shortcut = nn.Sequential(nn.Conv3d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class VideoNet(nn.Sequential):
    def __init__(self, classes: int = 4) -> None:
        super().__init__(Block(1, 16), Block(16, 32, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, classes))


def clips(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return clips of shape (count, 1, 8, 16, 16) and their directions: 0 left, 1 right, 2 up, 3 down."""
    videos, labels = torch.zeros(count, 1, 8, 16, 16), torch.randint(4, (count,), generator=rng)
    for video, label in zip(videos, labels.tolist()):
        y, x = torch.randint(4, 9, (2,), generator=rng).tolist()
        dy, dx = [(0, -1), (0, 1), (-1, 0), (1, 0)][label]
        for t in range(8):
            top, left = y + dy * (t - 4), x + dx * (t - 4)
            video[0, t, max(top, 0):top + 4, max(left, 0):left + 4] = 1
    return videos + 0.1 * torch.randn(videos.shape, generator=rng), labels


def train(steps: int = 80, seed: int = 0) -> tuple[mmws.Report, list[float]]:
    """Convert and train the network; return the report and the loss of each step."""
    torch.manual_seed(seed)
    net, rng = VideoNet(), torch.Generator().manual_seed(seed)
    report = mmws.convert_(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        videos, labels = clips(2, rng)
        loss = F.cross_entropy(net(videos), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return report, losses


if __name__ == '__main__':
    report, losses = train()
    print(report)
    print(f'loss: {sum(losses[:20]) / 20:.3f} in the first 20 steps, {sum(losses[-20:]) / 20:.3f} in the last 20')

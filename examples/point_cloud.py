"""A point-cloud classifier like DGCNN (arXiv 1801.07829) in plain PyTorch, converted with `mmws.convert_`.

The data is random: points on a sphere, on a cube or in a plane, rotated. The batch size is 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import mmws


class EdgeConv(nn.Module):
    """Maximum over the nearest neighbours of a point of a 1x1 convolution of (neighbour - point, point)."""

    def __init__(self, channels_in: int, channels: int, neighbours: int = 8) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.edge = nn.Sequential(
            nn.Conv2d(2 * channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:  # (clouds, channels, points)
        points = x.transpose(1, 2)
        nearest = torch.cdist(points, points).topk(self.neighbours, largest=False).indices
        neighbour = torch.stack([cloud[index] for cloud, index in zip(points, nearest)])
        centre = points[:, :, None].expand_as(neighbour)
        edges = torch.cat([neighbour - centre, centre], -1).permute(0, 3, 1, 2)
        return self.edge(edges).amax(-1)


class DGCNN(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.edge1, self.edge2 = EdgeConv(3, 32), EdgeConv(32, 32)
        self.fuse = nn.Sequential(nn.Conv1d(64, 128, 1, bias=False), nn.BatchNorm1d(128), nn.ReLU())
        self.classify = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        first = self.edge1(x)
        return self.classify(self.fuse(torch.cat([first, self.edge2(first)], 1)).amax(-1))


def clouds(count: int, rng: torch.Generator, points: int = 64) -> tuple[Tensor, Tensor]:
    """Return point clouds of shape (count, 3, points) and their classes: 0 sphere, 1 cube, 2 plane."""
    labels = torch.randint(3, (count,), generator=rng)
    result = []
    for label in labels.tolist():
        cloud = torch.randn(points, 3, generator=rng)
        if label == 2:
            cloud[:, 2] = 0
        else:
            cloud /= cloud.norm(dim=1, keepdim=True) if label == 0 else cloud.abs().amax(1, keepdim=True)
        rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng))
        result.append((cloud @ rotation).T)
    return torch.stack(result), labels


def train(steps: int = 150, seed: int = 0) -> tuple[mmws.Report, list[float]]:
    """Convert and train the network; return the report and the loss of each step."""
    torch.manual_seed(seed)
    net, rng = DGCNN(), torch.Generator().manual_seed(seed)
    report = mmws.convert_(net, inputs=torch.randn(2, 3, 64))  # clouds: an image would not do
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    losses = []
    for _ in range(steps):
        points, labels = clouds(2, rng)
        loss = F.cross_entropy(net(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return report, losses


if __name__ == '__main__':
    report, losses = train()
    print(report)
    print(f'loss: {sum(losses[:20]) / 20:.3f} in the first 20 steps, {sum(losses[-20:]) / 20:.3f} in the last 20')

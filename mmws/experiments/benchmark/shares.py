"""Shares of the time of a step that convolutions, norms and the rest take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ['SHARES', 'time_shares']

SHARES = ('convolutions', 'norms', 'the rest')


def time_shares(run: Callable[[], Any]) -> dict[str, float]:
    """Return the share of each of :data:`SHARES` in the CPU time of ``run``, by torch's profiler.

    The kernels of GroupNorm also standardize weights: with WS they count as norms.

    Example:
        >>> import torch
        >>> shares = time_shares(lambda: torch.conv2d(torch.randn(1, 8, 64, 64), torch.randn(8, 8, 3, 3)))
        >>> shares['norms']
        0.0
    """
    with profile(activities=[ProfilerActivity.CPU]) as record:
        run()
    seconds: Counter[str] = Counter()
    for event in record.key_averages():
        name = event.key.lower()
        kind = 'convolutions' if 'conv' in name else 'norms' if '_norm' in name else 'the rest'
        seconds[kind] += event.self_cpu_time_total
    return {kind: round(seconds[kind] / sum(seconds.values()), 3) for kind in SHARES}

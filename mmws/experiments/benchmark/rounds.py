"""Time several runs side by side, in rounds. It needs no package."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping

__all__ = ['WARM_UP', 'compare']

WARM_UP = 2  # rounds before those that count


def compare(runs: Mapping[str, Callable[[], float]], rounds: int,
            on_run: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
    """Time each of ``runs`` in each round, in a new random order; :data:`WARM_UP` more rounds come first.

    Side by side, a change of the machine's clock or load meets all of them.

    Args:
        runs: by name; each returns its seconds. The first is the baseline.
        rounds: number of rounds that count, two or more.
        on_run: called after each run.

    Returns:
        By name: ``seconds``, the median over the rounds; ``ratio``, the median of the ratios to the first in the same
        round, and its quartiles ``low`` and ``high``.

    Example:
        >>> compare({'plain': lambda: 2.0, 'slow': lambda: 3.0}, rounds=2)['slow']
        {'seconds': 3.0, 'ratio': 1.5, 'low': 1.5, 'high': 1.5}
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + WARM_UP):
        for name in random.Random(number).sample(list(runs), len(runs)):
            seconds[name].append(runs[name]())
            on_run()
    base, results = next(iter(seconds.values()))[WARM_UP:], {}
    for name, times in seconds.items():
        ratios = [own / first for own, first in zip(times[WARM_UP:], base)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method='inclusive')
        results[name] = {'seconds': statistics.median(times[WARM_UP:]), 'ratio': ratio, 'low': low, 'high': high}
    return results

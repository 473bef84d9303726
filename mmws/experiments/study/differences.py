"""Differences between methods, paired by seed: both see the same images in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, stdev

from scipy.stats import t

from mmws.experiments.study.plan import Run
from mmws.experiments.study.results import Cell

__all__ = ['Difference', 'differences']

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Difference of a method to the reference in percent points, with its 95% interval."""

    run: Run  # one of the method
    reference: str
    setting: str
    mean: float
    low: float
    high: float

    @property
    def method(self) -> str:
        return self.run.method

    def text(self) -> str:
        """Return the finding; an interval that contains zero supports none."""
        if self.low <= 0 <= self.high:
            return 'no difference found'
        return f'{"better" if self.low > 0 else "worse"} than {self.reference}'


def differences(cells: Sequence[Cell], references: Sequence[str]) -> list[Difference]:
    """Return the differences to each of the methods ``references`` at the same batch size and schedule.

    The interval is the one of Student's t for the mean of the differences of the seeds that finished with both methods.
    Methods with fewer than two such seeds are left out, and references that were compared before.
    """
    found = []
    for reference, cell in product(references, cells):
        base = next((other for other in cells if other.run.method == reference and other.setting == cell.setting), None)
        if base is None or base is cell or cell.run.method in references[:references.index(reference)]:
            continue
        ours, theirs = (dict(zip(each.seeds, each.values)) for each in (cell, base))
        values = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if len(values) > 1:
            center, error = mean(values), stdev(values) / len(values) ** 0.5
            half = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
            found.append(Difference(cell.run, reference, cell.setting, center, center - half, center + half))
    return found

"""Report of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmws.conversion.parametrize_convs import WEIGHTS
from mmws.conversion.replace_norms import NORMS

__all__ = ['Report']


@dataclass
class Report:
    """What :func:`convert_` did, by module name.

    Attributes:
        converted: the convolutions that became standardized, or what ``weight`` says.
        skipped: the convolutions, and modules of other kinds, that stay as they were, with the reason.
        unseen: the convolutions that were not seen in a run and were judged by the module tree.
        norms: the norms that were replaced, with what stands in their place.
        norm, weight: the options of the conversion.
    """

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    norms: dict[str, str] = field(default_factory=dict)
    norm: str = 'GN'
    weight: str = 'ws'

    def summary(self) -> str:
        """Return the figures in a line."""
        unseen = f', {len(self.unseen)} judged by the module tree' if self.unseen else ''
        method, became = WEIGHTS[self.weight]
        norms = 'norms kept' if self.norm == 'keep' else (
            f'{len(self.norms)} BatchNorm replaced by {NORMS[self.norm][0]}')
        return (f'{method}: {len(self.converted)} convolutions {became}, '
                f'{len(self.skipped)} left as they were, {norms}{unseen}')

    def __str__(self) -> str:
        lines = [self.summary()]
        lines += [f'  {WEIGHTS[self.weight][1]}  {name}' for name in self.converted]
        lines += [f'  left          {name}: {reason}' for name, reason in self.skipped.items()]
        lines += [f'  not seen run  {name}: judged by the module tree' for name in self.unseen]
        lines += [f'  norm          {name}: {became}' for name, became in self.norms.items()]
        return '\n'.join(lines)

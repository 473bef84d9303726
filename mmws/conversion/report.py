"""Report of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmws.conversion.parametrize_convs import WEIGHTS
from mmws.conversion.replace_norms import NORMS

__all__ = ['Report']

ITSELF = 'the network itself'  # the name of the root is ''


@dataclass
class Report:
    """Result of :func:`mmws.convert_`, by module name.

    Attributes:
        converted: the convolutions that were standardized (or got the other form that ``weight`` names).
        skipped: the convolutions and other modules that stay unchanged, with the reason.
        unseen: the convolutions that were not run; the module tree decided for them.
        functions: calls of convolution functions with a weight that is no module's, by file, line and function of the
            caller. They stay as they are.
        norms: the norms that were replaced, with the old and the new type.
        norm, weight: the options of the conversion.

    Example:
        >>> from torch import nn
        >>> import mmws
        >>> report = mmws.convert_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1)))
        >>> report.converted, report.skipped, report.norms
        (['0'], {'2': 'no norm follows: the output leaves the network'}, {'1': 'BatchNorm2d -> GroupNorm(8, 8)'})
    """

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    norms: dict[str, str] = field(default_factory=dict)
    functions: dict[str, list[str]] = field(default_factory=dict)
    norm: str = 'GN'
    weight: str = 'ws'

    def summary(self) -> str:
        """Return the counts in one line."""
        unseen = f', {len(self.unseen)} not run, decided by the module tree' if self.unseen else ''
        method, form = WEIGHTS[self.weight]
        norms = (f'{len(self.norms)} BatchNorm replaced by {NORMS[self.norm].name}' if self.norm in NORMS else
                 'norms kept')
        return (f'{method}: {len(self.converted)} convolutions {form}, {len(self.skipped)} modules unchanged, '
                f'{norms}{unseen}')

    def __str__(self) -> str:
        lines = [self.summary()]
        lines += [f'  {WEIGHTS[self.weight][1]}  {name or ITSELF}' for name in self.converted]
        lines += [f'  unchanged     {name or ITSELF}: {reason}' for name, reason in self.skipped.items()]
        lines += [f'  unchanged     {call}, called at {where}'
                  for where, calls in self.functions.items() for call in calls]
        lines += [f'  not run       {name or ITSELF}: decided by the module tree' for name in self.unseen]
        lines += [f'  norm          {name or ITSELF}: {change}' for name, change in self.norms.items()]
        return '\n'.join(lines)

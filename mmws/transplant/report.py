"""Report of a transplant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmws.conversion.report import ITSELF, Report

__all__ = ['TransplantReport']


@dataclass
class TransplantReport:
    """Result of :func:`mmws.transplant_`, by names of the converted network's modules.

    All figures are measured on the images that the network was fitted to. On others it is farther from the BatchNorm
    network.

    Attributes:
        conversion: of the network; None if it was converted before.
        lost: for each convolution that was standardized and ran, the share of its output's variance that the removed
            means of its filters carried, 0 to 1.
        ridge: for each convolution with fitted filters the strength of the regression; None where the old filters fit
            best.
        fit: for each norm the squared correlation of its output with the BatchNorm's, 0 to 1, averaged over the
            channels with the variance as weight; None where the two outputs have different shapes.
        kept: norms and convolutions that were converted but not fitted, with the reason.
        distance: of the network's outputs to the BatchNorm network's, divided by the norm of the latter; None if they
            have different shapes or values that are not finite.
        distilled_distance: the same after a distillation, which changes nothing else here; None without one.
        images: the number of images.
    """

    conversion: Report | None = None
    lost: dict[str, float] = field(default_factory=dict)
    ridge: dict[str, float | None] = field(default_factory=dict)
    fit: dict[str, float | None] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    distance: float | None = None
    distilled_distance: float | None = None
    images: int = 0

    def summary(self) -> str:
        """Return the result in one line."""
        fits = [fit for fit in self.fit.values() if fit is not None]
        fit = f', fit {sum(fits) / len(fits):.2f} on average' if fits else ''
        distance = '' if self.distance is None else f', relative distance of the outputs {self.distance:.2f}'
        if self.distilled_distance is not None:
            distance += f' ({self.distilled_distance:.2f} after the distillation)'
        measured = ', both on these images' if fit and distance else ', on these images' if fit or distance else ''
        return (f'Transplant with {self.images} images: {len(self.ridge)} convolutions and {len(self.fit)} norms '
                f'fitted, {len(self.kept)} modules not fitted{fit}{distance}{measured}')

    def as_dict(self) -> dict[str, Any]:
        """Return the report without the conversion as plain values, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != 'conversion'}

    def __str__(self) -> str:
        lines = [self.summary()]
        lost = {name: f'{share:.0%} of the variance was in the means' for name, share in self.lost.items()}
        for name, ridge in self.ridge.items():
            result = 'the old filters fit best' if ridge is None else f'ridge {ridge:g}'
            lines.append(f'  filters     {name or ITSELF}: {", ".join(filter(None, [lost.get(name), result]))}')
        lines += [f'  norm        {name or ITSELF}: fit {"unknown" if fit is None else format(fit, ".2f")}'
                  for name, fit in self.fit.items()]
        lines += [f'  not fitted  {name or ITSELF}: {"; ".join(filter(None, [reason, lost.get(name)]))}'
                  for name, reason in self.kept.items()]
        return '\n'.join(lines)

"""Reasons for the layers that a transplant did not fit, and the loss of its convolutions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.func import functional_call

from mmws.conversion.layer_types import is_batch_norm
from mmws.conversion.trained_norms import trained_batch_norms
from mmws.layers.conv import WeightStandardized
from mmws.ops.torch_compat import BatchNorm
from mmws.transplant.record import Calls, first_input, without_autocast
from mmws.transplant.report import TransplantReport

__all__ = ['MeasuredConv', 'is_new', 'name_unfitted', 'why_untrained']

UNTRAINED = 'it was never trained: mean 0, variance 1, the same scale and shift in each channel'
NO_STATISTICS = 'it has no running statistics (track_running_stats=False)'
NOT_RUN = 'it did not run on the images'
ADVICE = {UNTRAINED: '; if the network was trained, load its weights first',
          NOT_RUN: '; give `forward`, a function of the network and the images that runs them'}
SHOWN = 3


class MeasuredConv:
    """Pre-hook of a convolution that was not fitted: measures what its standardization removes.

    Args:
        name: of the convolution.
        plain: the convolution of the BatchNorm network.
        report: gets the share of the output's variance that the means of the filters carried.
    """

    def __init__(self, name: str, plain: nn.Module, report: TransplantReport) -> None:
        self.name, self.plain, self.report = name, plain, report
        self.removed = self.kept = 0.0

    def __call__(self, conv: Any, args: Any, kwargs: Any) -> None:
        filters = conv.filters()
        mean = filters.flatten(1).mean(1).view(-1, *[1] * (filters.dim() - 1)).expand_as(filters)
        with without_autocast(first_input(args, kwargs)):
            self.removed += self._variance(conv.swap_layout(mean), args, kwargs)
            self.kept += self._variance(conv.swap_layout(filters - mean), args, kwargs)
        total = self.removed + self.kept
        self.report.lost[self.name] = self.removed / total if total else 0.0

    def _variance(self, weight: Any, args: Any, kwargs: Any) -> float:
        """Return the variance of the output with another weight, summed over the channels."""
        output = functional_call(self.plain, {'weight': weight}, args, kwargs)
        return float(output.float().transpose(0, 1).flatten(1).var(1).sum())


def is_new(source: nn.Module, module: nn.Module) -> bool:
    """Return whether the conversion of ``source`` to ``module`` standardized a convolution."""
    return isinstance(module, WeightStandardized) and not isinstance(source, WeightStandardized)


def why_untrained(norm: Any) -> str:
    """Return why a BatchNorm has no training to carry over; '' if it has one."""
    if norm.running_mean is None:
        return NO_STATISTICS
    return '' if trained_batch_norms(norm) else UNTRAINED


def name_unfitted(report: TransplantReport, pairs: Mapping[nn.Module, nn.Module], names: Mapping[nn.Module, str],
                  calls: Calls, reasons: Mapping[nn.Module, str]) -> None:
    """Name in the report what was converted but not fitted, and warn of BatchNorms among it.

    Args:
        report: of the transplant.
        pairs: modules of the BatchNorm network, and those of the converted one.
        names: of the latter.
        calls: of the BatchNorms that were fitted.
        reasons: why convolutions were not fitted.
    """
    found: dict[str, list[str]] = {}
    for source, module in pairs.items():
        name = names[module]
        if isinstance(source, BatchNorm) and source not in calls:
            unknown = '' if is_batch_norm(source) else f'{type(source).__name__} is an unknown subclass of BatchNorm'
            report.kept[name] = why_untrained(source) or unknown or NOT_RUN
            found.setdefault(report.kept[name], []).append(name)
        if is_new(source, module) and name not in report.ridge:
            report.kept.setdefault(name, reasons.get(source) or 'the norm that reads its output was not fitted')
    for reason, each in found.items():
        more = f' and {len(each) - SHOWN} more' if len(each) > SHOWN else ''
        warnings.warn(f'transplant_: norms were not fitted: {", ".join(each[:SHOWN])}{more}: {reason}'
                      f'{ADVICE.get(reason, "")}', stacklevel=3)

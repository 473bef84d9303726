"""Hooks that fit one norm of the converted network, or the convolution before it, when it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmws.layers.conv import WeightStandardized
from mmws.transplant.filters import correlation, fit_filters, standardization_loss
from mmws.transplant.norms import NormFit, affine_of
from mmws.transplant.record import Call, first_input, without_autocast
from mmws.transplant.report import TransplantReport
from mmws.transplant.sampling import at_positions, inputs_of_filters

__all__ = ['FittedConv', 'FittedNorm', 'MeasuredNorm']

HELD_OUT = 4  # one image in four chooses the strength of the regression


class FittedConv:
    """Pre-hook of a convolution before a converted norm: fits its filters before it runs.

    Args:
        name: of the convolution.
        teacher: the convolution of the BatchNorm network.
        norm: the BatchNorm after it.
        calls: of that BatchNorm.
        report: gets what the standardization removes, and the strength of the regression.

    Attributes:
        signed: for each channel, whether its filter has the sign of BatchNorm's scale now.
    """

    def __init__(self, name: str, teacher: Any, norm: nn.Module, calls: list[Call], report: TransplantReport) -> None:
        self.name, self.calls, self.report = name, iter(calls), report
        weight = teacher.weight.detach().float()
        self.raw = _in_groups(weight.flatten(1), teacher.groups, 0)
        self.scaled = self.raw * affine_of(norm)[0].view(teacher.groups, -1, 1)
        self.signed = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        self.inputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.held_out: list[Tensor] = []

    def __call__(self, conv: Any, args: Any, kwargs: Any) -> None:
        x, call = first_input(args, kwargs), next(self.calls, None)
        if call is None or x.shape != call.conv_input:
            self.report.kept.setdefault(self.name, 'its input differs in shape from that of the BatchNorm network, or '
                                                   'its norm reads another output')
            return
        self.report.kept.pop(self.name, None)
        with without_autocast(x):
            self.inputs.append(inputs_of_filters(conv, x, call.positions, call.shape[-1]))
            self.targets.append(call.values)
            image = torch.arange(len(call.positions), device=x.device).repeat_interleave(call.positions.shape[1])
            self.held_out.append(image % HELD_OUT == HELD_OUT - 1)
            self._fit_(conv)

    def _fit_(self, conv: Any) -> None:
        """Fit the filters to the calls so far: a head shared by the levels of a pyramid runs several times."""
        inputs, standardized = torch.cat(self.inputs, 1), isinstance(conv, WeightStandardized)
        targets = _in_groups(torch.cat(self.targets), conv.groups, 1).transpose(0, 1)
        fitted = fit_filters(inputs, targets, self.scaled, standardized, torch.cat(self.held_out))
        self.report.ridge[self.name] = fitted.ridge
        if standardized:
            self.report.lost[self.name] = standardization_loss(inputs, self.raw)
        filters, usable = fitted.filters, fitted.filters.abs().amax(2, keepdim=True) > 0
        if standardized:
            deviation, old = filters.std(2, keepdim=True), self.raw.std(2, keepdim=True)
            usable = deviation > torch.finfo(deviation.dtype).eps
            # Keep the old scale, which standardization removes: the step of an optimizer is relative to it.
            filters = filters / deviation * torch.where(old > 0, old, torch.ones_like(old))
        self.signed = usable.flatten()
        conv.weight.copy_(torch.where(usable, filters, self.raw).flatten(0, 1).view_as(conv.weight))
        if conv.bias is not None:  # else the differences of the channels' means would count in GroupNorm's variance
            weight = (conv.standardized_weight() if standardized else conv.weight).float()
            mean = inputs.mean(1, keepdim=True) @ _in_groups(weight.flatten(1), conv.groups, 0).mT
            conv.bias.copy_(-mean.flatten())


class FittedNorm:
    """Pre-hook of a converted norm: fits its affine parameters before it runs.

    Args:
        norm: of the converted network.
        teacher: the BatchNorm that it replaced.
        calls: of that BatchNorm.
        conv: of the convolution before the norm, if that is fitted.
    """

    def __init__(self, norm: nn.Module, teacher: nn.Module, calls: list[Call], conv: FittedConv | None) -> None:
        self.fit, self.calls, self.conv = NormFit(norm), iter(calls), conv
        self.sign = torch.where(affine_of(teacher)[0] < 0, -1.0, 1.0)

    def __call__(self, norm: nn.Module, args: Any, kwargs: Any) -> None:
        x, call = first_input(args, kwargs), next(self.calls, None)
        if call is not None and x.numel():  # the number of regions, and so of calls, may differ
            signed = torch.zeros_like(self.sign, dtype=torch.bool) if self.conv is None else self.conv.signed
            with without_autocast(x):
                self.fit.update_(x, call.moments, torch.where(signed, self.sign.abs(), self.sign))


class MeasuredNorm:
    """Pre-hook of a fitted norm: measures how its output corresponds to the BatchNorm's, over all its calls."""

    def __init__(self, name: str, norm: nn.Module, calls: list[Call], report: TransplantReport) -> None:
        self.name, self.fit, self.calls, self.report = name, NormFit(norm), iter(calls), report
        self.pairs: list[tuple[Tensor, Tensor]] = []
        report.fit[name] = None

    def __call__(self, norm: nn.Module, args: Any, kwargs: Any) -> None:
        x, call = first_input(args, kwargs), next(self.calls, None)
        if call is not None and x.shape == call.shape:
            with without_autocast(x):
                self.pairs.append((at_positions(self.fit.output(x), call.positions), call.values))
            self.report.fit[self.name] = round(float(correlation(*(torch.cat(each) for each in zip(*self.pairs)))), 4)


def _in_groups(x: Tensor, groups: int, dim: int) -> Tensor:
    return x.reshape(*x.shape[:dim], groups, -1, *x.shape[dim + 1:])

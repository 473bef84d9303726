"""Hooks that fit one norm of the converted network, or the convolution before it, when it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmws.layers.conv import WeightStandardized
from mmws.transplant.filters import fit_filters, standardization_loss
from mmws.transplant.norms import NormFit, affine_of
from mmws.transplant.record import Call
from mmws.transplant.report import TransplantReport
from mmws.transplant.sampling import at_positions, inputs_of_filters

__all__ = ['FittedConv', 'FittedNorm']

HELD_OUT = 4  # one image in four chooses the strength of the regression


class FittedNorm:
    """Pre-hook of a converted norm: fits its affine parameters before it runs.

    Args:
        name: of the norm.
        norm: of the converted network.
        teacher: the BatchNorm that it replaced.
        calls: of that BatchNorm.
        signed: whether the filters before the norm have the sign of BatchNorm's scale.
        report: gets the fit.
    """

    def __init__(self, name: str, norm: nn.Module, teacher: nn.Module, calls: list[Call], signed: bool,
                 report: TransplantReport) -> None:
        self.name, self.calls, self.report = name, iter(calls), report
        self.fit, scale = NormFit(norm), affine_of(teacher)[0]
        self.sign = torch.ones_like(scale) if signed else torch.where(scale < 0, -1.0, 1.0)

    def __call__(self, norm: nn.Module, args: Any) -> None:
        call = next(self.calls, None)
        if call is None:  # called more often than the BatchNorm: the number of regions may differ
            return
        normalized = self.fit.update_(args[0], call.moments, self.sign)
        correlated = args[0].shape == call.shape
        self.report.fit[self.name] = _correlation(
            at_positions(normalized, call.positions), call.values) if correlated else None


class FittedConv:
    """Pre-hook of a convolution before a converted norm: fits its filters before it runs.

    Args:
        name: of the convolution.
        teacher: the convolution of the BatchNorm network.
        norm: the BatchNorm after it.
        calls: of that BatchNorm.
        shapes: of the inputs of ``teacher``.
        report: gets what the standardization removes, and the strength of the regression.
    """

    def __init__(self, name: str, teacher: Any, norm: nn.Module, calls: list[Call], shapes: list[torch.Size],
                 report: TransplantReport) -> None:
        self.name, self.calls, self.report = name, iter(list(zip(calls, shapes))), report
        weight = teacher.weight.detach().float()
        self.raw = _in_groups(weight.flatten(1), teacher.groups, 0)
        self.scaled = self.raw * affine_of(norm)[0].view(teacher.groups, -1, 1)
        self.inputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.held_out: list[Tensor] = []

    def __call__(self, conv: Any, args: Any) -> None:
        call, shape = next(self.calls, (None, None))
        if call is None or args[0].shape != shape:
            self.report.kept[self.name] = 'its input differs in shape from that of the BatchNorm network'
            return
        self.inputs.append(inputs_of_filters(conv, args[0], call.positions, call.shape[-1]))
        self.targets.append(call.values)
        image = torch.arange(len(call.positions), device=call.values.device).repeat_interleave(call.positions.shape[1])
        self.held_out.append(image % HELD_OUT == HELD_OUT - 1)
        self._fit_(conv)

    def _fit_(self, conv: Any) -> None:
        """Fit the filters to the calls so far: a head shared by the levels of a pyramid runs several times."""
        inputs, standardized = torch.cat(self.inputs, 1), isinstance(conv, WeightStandardized)
        targets = _in_groups(torch.cat(self.targets), conv.groups, 1).transpose(0, 1)
        fitted = fit_filters(inputs, targets, self.scaled, standardized, torch.cat(self.held_out))
        self.report.ridge[self.name] = fitted.ridge
        self.report.lost[self.name] = standardization_loss(inputs, self.raw) if standardized else 0.0
        filters, deviation = fitted.filters, fitted.filters.std(2, keepdim=True)
        if standardized:  # the scale is free; with the old one a learning rate has the old effect
            filters = filters / deviation * self.raw.std(2, keepdim=True)
        filters = torch.where(deviation > torch.finfo(deviation.dtype).eps, filters, self.raw)
        conv.weight.copy_(filters.flatten(0, 1).view_as(conv.weight))
        if conv.bias is not None:  # centred channels, so that a group has the variance of its channels only
            weight = (conv.standardized_weight() if standardized else conv.weight).float()
            mean = inputs.mean(1, keepdim=True) @ _in_groups(weight.flatten(1), conv.groups, 0).mT
            conv.bias.copy_(-mean.flatten())


def _in_groups(x: Tensor, groups: int, dim: int) -> Tensor:
    return x.reshape(*x.shape[:dim], groups, -1, *x.shape[dim + 1:])


def _correlation(outputs: Tensor, targets: Tensor) -> float:
    """Return the squared correlation of the columns, averaged with the variances of the targets as weights."""
    outputs, targets = outputs - outputs.mean(0), targets - targets.mean(0)
    tiny = torch.finfo(outputs.dtype).tiny
    explained = (outputs * targets).sum(0).square() / outputs.square().sum(0).clamp_min(tiny)
    return round(float(explained.sum() / targets.square().sum().clamp_min(tiny)), 4)

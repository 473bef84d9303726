"""Placement decision for one convolution."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from mmws.conversion.weight_use import WeightUse

__all__ = ['LAYER_NORM_REASON', 'Decision']

LAYER_NORM_REASON = 'a LayerNorm follows: standardized only if `include` matches it'


@dataclass
class Decision:
    """Placement decision for one convolution.

    Attributes:
        norms: the norms that consume its output.
        reason: the reason to keep it plain; empty if only norms consume its output.
        use: the use of its weight, for a class whose forward is not known.
        ran: True if the dry run showed the consumers; False if the convolution was not run: the module
            tree decided.
    """

    norms: list[nn.Module] = field(default_factory=list)
    reason: str = ''
    ran: bool = False
    use: WeightUse | None = None

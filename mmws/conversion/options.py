"""Options of a conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mmws.conversion.parametrize_convs import WEIGHTS
from mmws.conversion.replace_norms import NORMS
from mmws.errors import WSError, near_matches
from mmws.ops.standardize import check_eps

__all__ = ['Options']


@dataclass(frozen=True)
class Options:
    """What ``ws=dict(...)`` and the keywords of :func:`convert_` may say.

    Args:
        norm: what BatchNorm of every kind becomes: GroupNorm ``'GN'``, GroupNorm with one group ``'LN'``, instance
            normalization ``'IN'``, :class:`mmws.layers.switchable_norm.SwitchableNorm` ``'SN'``,
            :class:`mmws.layers.batch_channel_norm.BatchChannelNorm` ``'BCN'``, the same with estimated statistics
            ``'EstBN'``; ``'keep'`` leaves every norm as it is.
        weight: what becomes of the convolutions that feed a norm: standardized ``'ws'``, weight normalization ``'wn'``
            or spectral normalization ``'spectral'``
            (:func:`mmws.conversion.parametrize_convs.reparametrize_conv_`), or nothing, ``'plain'``.
        num_groups: upper bound of the number of groups; the largest divisor of the channels within it is taken.
        eps: added to each filter's standard deviation, see :func:`mmws.standardize_weight`.
        exclude: globs on module names; the convolutions they match stay plain, their norms are replaced all the same.
        include: globs on module names; where given, the convolutions they match alone are standardized, and
            for these a LayerNorm counts as a norm too.

    Raises:
        WSError: if a value is not one of these.
    """

    norm: str = 'GN'
    weight: str = 'ws'
    num_groups: int = 32
    eps: float = 1e-5
    exclude: Sequence[str] = ()
    include: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, known in (('norm', [*NORMS, 'keep']), ('weight', list(WEIGHTS))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:  # an array compares itself, element by element
                listed = ' or '.join((', '.join(map(repr, known[:-1])), repr(known[-1])))
                raise WSError(f'ws option {name}: expected {listed}, got {value!r}')
        if type(self.num_groups) is not int or self.num_groups < 1:
            raise WSError(f'ws option num_groups: expected a positive integer, got {self.num_groups!r}')
        try:
            check_eps(self.eps)
        except ValueError as error:
            raise WSError(f'ws option {error}') from None
        for name in ('exclude', 'include'):
            globs = getattr(self, name)
            if not isinstance(globs, (list, tuple)) or not all(isinstance(glob, str) for glob in globs):
                raise WSError(f"ws option {name}: expected a list of globs such as ['neck.*'], got {globs!r}")

    @classmethod
    def parse(cls, options: Mapping[str, Any], also: Sequence[str] = ()) -> Options:
        """Check the names and the values of ``options``; ``also`` are names known elsewhere."""
        known = [*(option.name for option in fields(cls)), *also]
        for name in options:
            if name not in known:
                raise WSError(f'unknown ws option {name!r}: {near_matches(str(name), known)}')
        return cls(**options)

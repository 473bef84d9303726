"""Options of a conversion, with checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from mmws.conversion.parametrize_convs import WEIGHTS
from mmws.conversion.replace_norms import NORMS
from mmws.errors import WSError, near_matches
from mmws.ops.standardize import check_eps
from mmws.ops.torch_compat import NORMALIZE

__all__ = ['Options']


@dataclass(frozen=True)
class Options:
    """Options of a conversion: ``ws=dict(...)`` in a config, or the keyword arguments of :func:`mmws.convert_`.

    Args:
        norm, weight, num_groups, eps, cache, exclude, include: as in :func:`mmws.convert_`.

    Raises:
        WSError: if a value is not allowed.

    Example:
        >>> Options(norm='keep', exclude=['neck.*']).weight
        'ws'
        >>> Options(num_groups=0)
        Traceback (most recent call last):
        mmws.errors.WSError: ws option num_groups: expected a positive integer, got 0
    """

    norm: str = 'GN'
    weight: str = 'ws'
    num_groups: int = 32
    eps: float = 1e-5
    cache: bool = True
    exclude: Sequence[str] = ()
    include: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, known in (('norm', [*NORMS, 'keep']), ('weight', list(WEIGHTS))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:  # the type first: an array compares elementwise
                listed = ' or '.join((', '.join(map(repr, known[:-1])), repr(known[-1])))
                raise WSError(f'ws option {name}: expected {listed}, got {value!r}')
        if self.weight == 'wn' and 'wn' not in NORMALIZE:
            raise WSError(f"ws option weight: 'wn' needs torch >= 2.1, this is {torch.__version__}")
        if type(self.num_groups) is not int or self.num_groups < 1:
            raise WSError(f'ws option num_groups: expected a positive integer, got {self.num_groups!r}')
        try:
            check_eps(self.eps)
        except ValueError as error:
            raise WSError(f'ws option {error}') from None
        if type(self.cache) is not bool:
            raise WSError(f'ws option cache: expected True or False, got {self.cache!r}')
        for name in ('exclude', 'include'):
            globs = getattr(self, name)
            if not isinstance(globs, (list, tuple)) or not all(isinstance(glob, str) for glob in globs):
                raise WSError(f"ws option {name}: expected a list of globs such as ['neck.*'], got {globs!r}")

    @classmethod
    def parse(cls, options: Mapping[str, Any], also: Sequence[str] = ()) -> Options:
        """Return ``options`` with checked names and values.

        ``also``: more names for the error message. Remove them from ``options`` first.
        """
        known = [*(option.name for option in fields(cls)), *also]
        for name in options:
            if name not in known:
                raise WSError(f'unknown ws option {name!r}: {near_matches(str(name), known)}')
        return cls(**options)

"""Turn any nn.Module into its Weight Standardization form. Imports torch alone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from mmws.conv import WeightStandardized
from mmws.errors import WSError, near_matches
from mmws.norm import is_batch_norm, is_norm, to_group_norm_
from mmws.placement import LAYER_NORM, Placement, Verdict, find_placement
from mmws.swap import standardize_conv_, standardized_class, standardizes_itself

__all__ = ['Options', 'Report', 'convert_', 'why_unfit']


@dataclass(frozen=True)
class Options:
    """What ``ws=dict(...)`` and the keywords of :func:`convert_` may say.

    Args:
        norm: ``'GN'`` replaces BatchNorm of every kind by GroupNorm, ``'keep'`` leaves every norm as it is.
        num_groups: upper bound of the number of groups; the largest divisor of the channels within it is taken.
        eps: added to each filter's standard deviation, see :func:`mmws.standardize_weight`.
        exclude: globs on module names; the convolutions they match stay plain, their norms are replaced all the same.
        include: globs on module names; where given, the convolutions they match alone are standardized, and
            for these a LayerNorm counts as a norm too.

    Raises:
        WSError: if a value is not one of these.
    """

    norm: str = 'GN'
    num_groups: int = 32
    eps: float = 1e-5
    exclude: Sequence[str] = ()
    include: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.norm not in ('GN', 'keep'):
            raise WSError(f"ws option norm: expected 'GN' or 'keep', got {self.norm!r}")
        if type(self.num_groups) is not int or self.num_groups < 1:
            raise WSError(f'ws option num_groups: expected a positive integer, got {self.num_groups!r}')
        if type(self.eps) not in (int, float) or not 0 <= self.eps < float('inf'):
            raise WSError(f'ws option eps: expected a number from 0 on, got {self.eps!r}')
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


@dataclass
class Report:
    """What :func:`convert_` did, by module name.

    Attributes:
        converted: the convolutions that became standardized.
        skipped: the convolutions, and modules of other kinds, that stay as they were, with the reason.
        unseen: the convolutions that were not seen in a run and were judged by the module tree.
        norms: the norms that were replaced, with what stands in their place.
    """

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    norms: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Return the figures in a line."""
        unseen = f', {len(self.unseen)} judged by the module tree' if self.unseen else ''
        return (f'Weight Standardization: {len(self.converted)} convolutions standardized, '
                f'{len(self.skipped)} left as they were, {len(self.norms)} BatchNorm replaced by GroupNorm{unseen}')

    def __str__(self) -> str:
        lines = [self.summary()]
        lines += [f'  standardized  {name}' for name in self.converted]
        lines += [f'  left          {name}: {reason}' for name, reason in self.skipped.items()]
        lines += [f'  not seen run  {name}: judged by the module tree' for name in self.unseen]
        lines += [f'  norm          {name}: {became}' for name, became in self.norms.items()]
        return '\n'.join(lines)


def convert_(model: nn.Module, **options: Any) -> Report:
    """Standardize the convolutions of ``model`` that feed a norm and replace its BatchNorm by GroupNorm, in place.

    Weight Standardization (arXiv 1903.10520) belongs on a convolution if and only if a normalization layer takes its
    output; :func:`mmws.placement.find_placement` says how that is found out. Modules keep their identity,
    parameters, hooks, sharing and modes. State-dict keys become those of a network that was built with GroupNorm:
    where a module names its norm by type, as mmcv's do, ``bn1`` becomes ``gn1``. A GroupNorm trains if the
    convolution before it does, also where the BatchNorm was frozen. A converted model converted again stays the same.

    Args:
        model: any network; the OpenMMLab packages are not needed.
        **options: the fields of :class:`Options`.

    Returns:
        What was converted, what was skipped and why, which norms were replaced.

    Raises:
        WSError: if an option is unknown or has a wrong value, or a glob matches no convolution; the model is
            untouched then.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> print(convert_(net))
        Weight Standardization: 1 convolutions standardized, 1 left as they were, 1 BatchNorm replaced by GroupNorm
          standardized  0
          left          3: no norm takes its output: it leaves the network
          norm          1: BatchNorm2d -> GroupNorm(8, 8)
    """
    chosen = Options.parse(options)
    placed = find_placement(model)
    placement = placed.convs
    names = {module: name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    _apply_globs(placement, model, chosen)
    report = Report(unseen=[names[conv] for conv, verdict in placement.items() if not verdict.ran])
    for conv, verdict in placement.items():
        reason = verdict.reason or why_unfit(conv)
        if reason:
            report.skipped[names[conv]] = reason
        else:
            standardize_conv_(conv, chosen.eps)
            report.converted.append(names[conv])
    report.skipped.update(_outside_the_tree(model))
    if chosen.norm == 'GN':
        _replace_batch_norms(model, placed, chosen.num_groups, report)
    if not any(isinstance(module, WeightStandardized) for module in names):
        warnings.warn(f'nothing was standardized in {type(model).__name__}: {_what_is_missing(names)}', stacklevel=2)
    return report


def _outside_the_tree(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The modules that are kept where ``modules()`` does not look, as mmdet's distillations keep their teacher."""
    inside = set(model.modules())
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, nn.Module) and value not in inside:
                yield f'{name}.{attribute}'.lstrip('.'), 'kept outside the module tree; it stays as it is'


def _apply_globs(placement: dict[nn.Module, Verdict], model: nn.Module, options: Options) -> None:
    asked_for = _matching(placement, model, 'include', options.include)
    for conv, verdict in placement.items() if asked_for else ():
        if conv not in asked_for:
            verdict.reason = f'not in include={list(options.include)}'
        elif verdict.reason == LAYER_NORM:
            verdict.reason = ''
    for conv, glob in _matching(placement, model, 'exclude', options.exclude).items():
        placement[conv].reason = f'excluded by {glob!r}'


def _matching(placement: Iterable[nn.Module], model: nn.Module, option: str,
              globs: Iterable[str]) -> dict[nn.Module, str]:
    """The convolutions that one of the ``globs`` matches, by any of their names, and which."""
    convs = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if module in placement]
    found: dict[nn.Module, str] = {}
    for glob in globs:
        matching = [conv for name, conv in convs if fnmatchcase(name, glob)]
        if not matching:
            raise WSError(f'ws option {option}: {glob!r} matches no convolution of {type(model).__name__}; '
                          + near_matches(glob, [name for name, _ in convs]))
        found.update(dict.fromkeys(matching, glob))
    return found


def why_unfit(conv: nn.Module) -> str:
    """Say why ``conv`` cannot be standardized, whatever takes its output; nothing if it can."""
    if standardizes_itself(conv):
        return 'already standardized'
    standardized = standardized_class(conv)
    if standardized is None:
        return f'{type(conv).__name__} has no standardized form'
    if standardized.filters(conv)[0].numel() < 2:  # type: ignore[arg-type]
        return 'a fan-in of 1 has no standard deviation'
    return ''


def _replace_batch_norms(model: nn.Module, placed: Placement, num_groups: int, report: Report) -> None:
    was = {norm: type(norm).__name__ for norm in model.modules() if is_batch_norm(norm)}
    for norm in was:
        to_group_norm_(norm, num_groups, norm in placed.pointwise)
    for conv, verdict in placed.convs.items():
        for norm in verdict.norms:
            if norm in was and conv.weight.requires_grad:
                norm.requires_grad_()  # BatchNorm is frozen for its statistics' sake; GroupNorm has none
    for parent in list(model.modules()):
        _rename_norms(parent, was)
    for name, module in model.named_modules():
        if module in was:
            report.norms[name] = f'{was[module]} -> GroupNorm({module.num_groups}, {module.num_channels})'
        elif is_norm(module) and isinstance(module, nn.modules.batchnorm._BatchNorm):
            report.skipped[name] = f'{type(module).__name__} is a BatchNorm of unknown behaviour'


def _rename_norms(parent: nn.Module, replaced: Mapping[nn.Module, str]) -> None:
    """Where ``parent`` keeps the name of its norm in an attribute (``norm1_name = 'bn1'``), name the new type."""
    for attribute, old in list(vars(parent).items()):
        if re.fullmatch(r'norm\d*_name', attribute) and parent._modules.get(old) in replaced and old.startswith('bn'):
            new = f'gn{old[2:]}'
            renamed = {new if name == old else name: child for name, child in parent._modules.items()}
            parent._modules.clear()
            parent._modules.update(renamed)
            setattr(parent, attribute, new)


def _what_is_missing(modules: Iterable[nn.Module]) -> str:
    if any(is_norm(module) for module in modules):
        return 'none of its normalization layers takes the output of a convolution'
    return 'it has no normalization layer'

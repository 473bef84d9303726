"""Turn any nn.Module into its Weight Standardization form. Imports torch alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from mmws.errors import WSError, near_matches
from mmws.functional import check_eps
from mmws.norm import is_norm
from mmws.placement import LAYER_NORM, Verdict, find_placement, is_conv
from mmws.reparametrize import WEIGHTS, reparametrize_conv_, weight_form
from mmws.replace import NORMS, replace_batch_norms_
from mmws.swap import standardize_conv_, standardized_class, standardizes_itself

__all__ = ['Options', 'Report', 'convert_', 'why_unfit']


@dataclass(frozen=True)
class Options:
    """What ``ws=dict(...)`` and the keywords of :func:`convert_` may say.

    Args:
        norm: what BatchNorm of every kind becomes: GroupNorm ``'GN'``, GroupNorm with one group ``'LN'``, instance
            normalization ``'IN'``, :class:`mmws.switchable_norm.SwitchableNorm` ``'SN'``,
            :class:`mmws.batch_channel_norm.BatchChannelNorm` ``'BCN'``, the same with estimated statistics
            ``'EstBN'``; ``'keep'`` leaves every norm as it is.
        weight: what becomes of the convolutions that feed a norm: standardized ``'ws'``, weight normalization ``'wn'``
            or spectral normalization ``'spectral'`` (:func:`mmws.reparametrize.reparametrize_conv_`), or nothing,
            ``'plain'``.
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
            if getattr(self, name) not in known:
                listed = ' or '.join((', '.join(map(repr, known[:-1])), repr(known[-1])))
                raise WSError(f'ws option {name}: expected {listed}, got {getattr(self, name)!r}')
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


def convert_(model: nn.Module, **options: Any) -> Report:
    """Standardize the convolutions of ``model`` that feed a norm and replace its BatchNorm by GroupNorm, in place.

    Other norms and other forms of the weights are among the options.

    Weight Standardization (arXiv 1903.10520) belongs on a convolution if and only if a normalization layer takes its
    output; :func:`mmws.placement.find_placement` says how that is found out. Modules keep their identity,
    parameters, hooks, sharing and modes. State-dict keys become those of a network that was built with the new norm:
    where a module names its norm by type, as mmcv's do, ``bn1`` becomes ``gn1``. A norm without statistics of the batch
    trains if the convolution before it does, also where the BatchNorm was frozen. A model converted again stays
    the same.

    Args:
        model: any network; the OpenMMLab packages are not needed.
        **options: the fields of :class:`Options`.

    Returns:
        What was converted, what was skipped and why, which norms were replaced.

    Raises:
        WSError: if an option is unknown or has a wrong value, a glob matches no convolution, or a weight is in
            another form already; the model is untouched then.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> print(convert_(net))
        Weight Standardization: 1 convolutions standardized, 1 left as they were, 1 BatchNorm replaced by GroupNorm
          standardized  0
          left          3: no norm takes its output: it leaves the network
          norm          1: BatchNorm2d -> GroupNorm(8, 8)
    """
    if not isinstance(model, nn.Module):
        raise WSError(f'convert_: expected a network (nn.Module), got {model!r:.80}')
    chosen = Options.parse(options)
    placed = find_placement(model)
    placement = placed.convs
    names = {module: name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    _apply_globs(placement, model, chosen)
    _check_weights(placement, names, chosen.weight)
    report = Report(unseen=[names[conv] for conv, verdict in placement.items() if not verdict.ran],
                    norm=chosen.norm, weight=chosen.weight)
    for conv, verdict in placement.items():
        _change_conv_(conv, verdict.reason or why_unfit(conv), names[conv], chosen, report)
    report.skipped.update(_outside_the_tree(model))
    if chosen.norm != 'keep':
        by_training = sorted(placement, key=lambda conv: bool(conv.weight.requires_grad))
        fed_by = {norm: conv for conv in by_training for norm in placement[conv].norms}
        report.norms, left = replace_batch_norms_(model, chosen.norm, chosen.num_groups, fed_by, placed.pointwise)
        report.skipped.update(left)
    became = WEIGHTS[chosen.weight][1]
    if chosen.weight not in ('plain', *(weight_form(module) for module in names if is_conv(module))):
        warnings.warn(f'nothing was {became} in {type(model).__name__}: {_what_is_missing(names)}', stacklevel=2)
    return report


def _check_weights(placement: Mapping[nn.Module, Verdict], names: Mapping[nn.Module, str], wanted: str) -> None:
    for conv, verdict in placement.items():
        form = weight_form(conv)
        if not verdict.reason and form not in ('plain', wanted):
            raise WSError(f'ws option weight: {names[conv]} is {WEIGHTS[form][1]} already, and {wanted!r} cannot undo '
                          f'that; say weight={form!r}, or build the network with plain convolutions')


def _change_conv_(conv: nn.Module, reason: str, name: str, options: Options, report: Report) -> None:
    if reason or options.weight == 'plain':
        report.skipped[name] = reason or "ws option weight='plain'"
        return
    if options.weight == 'ws':
        standardize_conv_(conv, options.eps)
    else:
        reparametrize_conv_(conv, options.weight)
    report.converted.append(name)


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
    form = weight_form(conv)
    if standardizes_itself(conv) or form in ('wn', 'spectral'):
        return f'already {WEIGHTS[form][1]}'
    standardized = standardized_class(conv)
    if standardized is None:
        return f'{type(conv).__name__} has no standardized form'
    if standardized.filters(conv)[0].numel() < 2:  # type: ignore[arg-type]
        return 'a fan-in of 1 has no standard deviation'
    return ''


def _what_is_missing(modules: Iterable[nn.Module]) -> str:
    if any(is_norm(module) for module in modules):
        return 'none of its normalization layers takes the output of a convolution'
    return 'it has no normalization layer'

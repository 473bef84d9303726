"""Turn any nn.Module into its Weight Standardization form. Imports torch alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from mmws.conversion.norm_types import is_norm
from mmws.conversion.options import Options
from mmws.conversion.parametrize_convs import WEIGHTS, reparametrize_conv_, weight_form
from mmws.conversion.placement import LAYER_NORM, Verdict, find_placement, is_conv
from mmws.conversion.replace_norms import replace_batch_norms_
from mmws.conversion.report import Report
from mmws.conversion.swap_convs import standardize_conv_, standardized_class, standardizes_itself
from mmws.errors import WSError, near_matches

__all__ = ['convert_', 'why_unfit']


def convert_(model: nn.Module, **options: Any) -> Report:
    """Standardize the convolutions of ``model`` that feed a norm and replace its BatchNorm by GroupNorm, in place.

    Other norms and other forms of the weights are among the options.

    Weight Standardization (arXiv 1903.10520) belongs on a convolution if and only if a normalization layer takes its
    output; :func:`mmws.conversion.placement.find_placement` says how that is found out. Modules keep their identity,
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

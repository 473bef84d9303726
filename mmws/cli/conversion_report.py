"""Report of a conversion: build the model of a config, convert it, and draw its tree with each convolution marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from rich.markup import escape
from rich.tree import Tree
from torch import nn

from mmws.cli.config import load_config
from mmws.conversion.convert import convert_
from mmws.conversion.layer_types import is_conv
from mmws.conversion.module_tree import module_names
from mmws.conversion.parametrize_convs import WEIGHTS, weight_form
from mmws.conversion.replace_norms import NORMS
from mmws.conversion.report import Report
from mmws.conversion.swap_convs import standardizes_itself
from mmws.errors import FOREIGN_ERRORS, WSError, without_prefix
from mmws.files import atomic_write
from mmws.openmmlab.mmengine_compat import explain_operators
from mmws.openmmlab.stock_configs import stock_config

__all__ = ['ConversionReport', 'inspect_conversion', 'write_config']


@dataclass(frozen=True)
class _Node:
    """A line of the tree; equal for modules that look the same."""

    text: str
    children: tuple[tuple[str, _Node], ...] = ()


@dataclass
class ConversionReport:
    """A converted model, the report of its conversion, and totals by name."""

    model: nn.Module
    report: Report
    totals: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the totals, and the convolutions and norms by module name."""
        return {**self.totals, WEIGHTS[self.report.weight][1]: self.report.converted, 'plain': self.report.skipped,
                'judged by the module tree': self.report.unseen, 'norms': self.report.norms,
                'functions': self.report.functions}

    def tree(self) -> Tree:
        """Return the tree of the modules with a convolution or a norm; equal neighbours share one entry."""
        root = Tree(f'[bold]{type(self.model).__name__}')
        _grow(root, _node(self.model, '', module_names(self.model), self.report) or _Node(''))
        return root


def inspect_conversion(name: str, ws: Mapping[str, Any]) -> ConversionReport:
    """Build the model of a config without weights and convert it.

    Args:
        name: a path, or a stock config such as ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.
        ws: override the ``ws`` options of the config.

    Raises:
        WSError: if the config is not found, its model cannot be built, or an option is wrong.
    """
    config = _read(name)
    model_config = {**{key: value for key, value in config.model.items() if key != 'ws'}, 'type': _stock_type(config)}
    options = {key: value for key, value in {**(config.model.get('ws') or {}), **ws}.items() if key != 'pretrained'}
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or name.partition('::')[0]):
        try:
            with explain_operators():
                model = MODELS.build(model_config)
        except FOREIGN_ERRORS as error:
            raise WSError(f'{name}: cannot build the model without the mmws. prefix: {error}') from None
    before = sum(parameter.numel() for parameter in model.parameters())
    report = convert_(model, **options)
    convs = [module for module in model.modules() if is_conv(module)]
    forms = [weight_form(conv) for conv in convs]
    return ConversionReport(model, report, {
        'model': f'{type(model).__name__} of {name}',
        'convolutions': len(convs), 'convolutions, standardized': forms.count('ws'),
        **{f'convolutions, {WEIGHTS[form][1]}': forms.count(form) for form in ('wn', 'spectral') if form in forms},
        f'BatchNorm replaced by {NORMS.get(report.norm, NORMS["GN"]).name}': len(report.norms),
        'modules, unchanged': len(report.skipped),
        'calls of convolution functions, unchanged': sum(map(len, report.functions.values())),
        'convolutions, not run': len(report.unseen),
        'parameters, before': before, 'parameters, after': sum(parameter.numel() for parameter in model.parameters()),
        'parameters in standardized weights': sum(conv.weight.numel() for conv in convs if standardizes_itself(conv))})


def write_config(name: str, ws: Mapping[str, Any], path: Path) -> None:
    """Write a config that inherits from ``name`` and adds the prefix to its model.

    Raises:
        WSError: if ``path`` already exists.
    """
    if path.exists():
        raise WSError(f'{path} already exists; choose another name')
    base = f'__import__({"mmws"!r}).stock_config({name!r})' if '::' in name else repr(str(Path(name).absolute()))
    options = f', ws={dict(ws)!r}' if ws else ''
    with atomic_write(path) as partial:
        partial.write_text(f"_base_ = {base}\nmodel = dict(type='mmws.{_stock_type(_read(name))}'{options})\n")


def _read(name: str) -> Config:
    if '::' not in name and not Path(name).exists():
        raise WSError(f'config {name} not found; expected a path, or a stock config such as '
                      'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    return load_config(stock_config(name) if '::' in name else name, needs=['model'])


def _stock_type(config: Config) -> str:
    kind = config.model.type
    return without_prefix(kind if isinstance(kind, str) else kind.__name__, 'mmws.')


def _node(module: nn.Module, name: str, names: Mapping[nn.Module, str], report: Report) -> _Node | None:
    """Return the tree below ``module``, or None if it has no convolution and no norm."""
    first = names[module]
    if is_conv(module) or first in report.norms:
        shared = f' [cyan](same module as {first})' if first != name else ''
        return _Node((f'[blue]norm[/]   {escape(report.norms[first])}' if first in report.norms
                      else _conv_text(module, first, report)) + shared)
    inner = [(child, _node(part, f'{name}.{child}'.lstrip('.'), names, report))
             for child, part in module._modules.items() if part is not None]
    kept = tuple((child, node) for child, node in inner if node is not None)
    return _Node(f'[dim]{type(module).__name__}', kept) if kept else None


def _conv_text(conv: Any, name: str, report: Report) -> str:
    sizes = list(conv.weight.shape)
    kernel = 'x'.join(map(str, sizes[2:]))
    channels = getattr(conv, 'in_channels', sizes[1]), getattr(conv, 'out_channels', sizes[0])
    shape = f'{type(conv).__name__} {channels[0]} -> {channels[1]}, {kernel}'
    note = ' [yellow](not run, decided by the module tree)' if name in report.unseen else ''
    form = weight_form(conv)
    if form != 'plain':
        return f'[green]{"WS" if form == "ws" else form:<7}[/]{shape}{note}'
    return f'[magenta]plain[/]  {shape}: [dim]{escape(report.skipped.get(name, ""))}[/]{note}'


def _grow(tree: Tree, node: _Node) -> None:
    for child, alike in groupby(node.children, key=lambda named: named[1]):
        names = [name for name, _ in alike]
        label = names[0] if len(names) == 1 else f'{names[0]} ... {names[-1]} [yellow]{len(names)} alike[/]'
        _grow(tree.add(f'[bold]{label}[/] {child.text}'), child)

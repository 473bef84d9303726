"""The report of a conversion as one HTML file, with a module tree that can be searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template

from torch import nn

from mmws.cli.conversion_report import ConversionReport
from mmws.conversion.layer_types import is_conv
from mmws.conversion.module_tree import module_names
from mmws.conversion.parametrize_convs import WEIGHTS, weight_form
from mmws.files import write_text
from mmws.version import __version__

__all__ = ['reason_class', 'write_page']

LEGEND = {  # class of a leaf: what becomes of it, for the legend
    'ws': 'standardized, or in the form that the option weight names',
    'norm': 'norm, replaced',
    'no-norm': 'plain: no norm follows',
    'not-only': 'plain: not only norms follow',
    'option': 'plain: by the options, or a LayerNorm follows',
    'cannot': 'plain: cannot be standardized, or its use is unknown'}


def reason_class(reason: str) -> str:
    """Return the class of the reason for which a convolution stays plain: a key of ``LEGEND``.

    Example:
        >>> reason_class('no norm follows: add'), reason_class("excluded by 'neck.*'"), reason_class('fan-in of 1: ...')
        ('no-norm', 'option', 'cannot')
    """
    starts = {'no norm follows': 'no-norm', 'not only norms follow': 'not-only', 'excluded by': 'option',
              'not in include': 'option', 'ws option': 'option', 'a LayerNorm follows': 'option'}
    return next((name for start, name in starts.items() if reason.startswith(start)), 'cannot')


def write_page(report: ConversionReport, path: Path) -> None:
    """Write a page with the totals and the module tree. It needs no other file and no network."""
    totals = ''.join(f'<tr><th>{escape(name)}</th><td>{value:,}</td></tr>' if isinstance(value, int) else ''
                     for name, value in report.totals.items())
    functions = ''.join(f'<li class="leaf plain cannot">{escape(call)}, called at {escape(where)}</li>'
                        for where, calls in report.report.functions.items() for call in calls)
    tree = ''.join(_tree(report.model, module_names(report.model), report))
    legend = ''.join(f'<li class="{name}"><i>&#9632;</i> {text}</li>' for name, text in LEGEND.items())
    write_text(path, _PAGE.substitute(
        title=escape(report.totals['model']), version=__version__, totals=totals, legend=legend,
        summary=escape(report.report.summary()), tree=tree + (f'<ul>{functions}</ul>' if functions else '')))


def _tree(module: nn.Module, names: Mapping[nn.Module, str], report: ConversionReport) -> Iterator[str]:
    """Yield the HTML of the modules below ``module`` that are convolutions or replaced norms, or contain one."""
    yield '<ul>'
    for child, part in module.named_children():
        if is_conv(part) or names[part] in report.report.norms:
            yield _leaf(part, names[part], child, report)
        elif any(is_conv(inner) or names[inner] in report.report.norms for inner in part.modules()):
            yield f'<li><details open><summary><b>{escape(child)}</b> {escape(type(part).__name__)}</summary>'
            yield from _tree(part, names, report)
            yield '</details></li>'
    yield '</ul>'


def _leaf(part: nn.Module, path: str, child: str, report: ConversionReport) -> str:
    reason = report.report.skipped.get(path, '')
    if path in report.report.norms:
        kind, label, text = 'norm', 'norm', report.report.norms[path]
    else:
        form = weight_form(part)
        kind, label = (f'plain {reason_class(reason)}', 'plain') if form == 'plain' else ('ws', WEIGHTS[form][1])
        text = f'{type(part).__name__}({part.extra_repr()})'
    note = 'not run, decided by the module tree' if path in report.report.unseen else ''
    return (f'<li class="leaf {kind}" title="{escape(path)}"><i>{label}</i> <b>{escape(child)}</b> '
            f'{escape(text)} <em>{escape("; ".join(filter(None, (reason, note))))}</em></li>')


_PAGE = Template('''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ws: #1a7f37; --norm: #0550ae; --no-norm: #9a3b8f; --not-only: #8a5300;
  --option: #57606a; --cannot: #b3261e; --line: #8884; }
@media (prefers-color-scheme: dark) { :root { --ws: #5fd07a; --norm: #7ab8ff; --no-norm: #e08ad6; --not-only: #e3b341;
  --option: #a0a8b0; --cannot: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 1rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
ul { list-style: none; padding-left: 1.2rem; margin: 0; border-left: 1px solid var(--line); }
th { text-align: left; font-weight: normal; padding-right: 1rem; } td { text-align: right; }
summary { cursor: pointer; } em { opacity: .75; } i { font-style: normal; }
.ws i { color: var(--ws); } .norm i { color: var(--norm); } .no-norm i { color: var(--no-norm); }
.not-only i { color: var(--not-only); } .option i { color: var(--option); } .cannot i { color: var(--cannot); }
.legend { border: 0; padding: 0; margin: 1rem 0; display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
input { font: inherit; width: 100%; box-sizing: border-box; margin: 1rem 0; padding: .4rem; }
.hidden { display: none; }
</style></head><body>
<h1>$title</h1>
<p>$summary</p>
<table>$totals</table>
<ul class="legend" aria-label="Colours">$legend</ul>
<label>Search names, types and reasons <input id="search" type="search"></label>
<p><button id="open">Open all</button> <button id="close">Close all</button> <span id="count" role="status"></span></p>
<div id="tree">$tree</div>
<p><small>Written by <code>tools/report.py</code> of mmws $version.</small></p>
<script>
const tree = document.getElementById('tree'), search = document.getElementById('search');
const leaves = [...tree.querySelectorAll('.leaf')], groups = [...tree.querySelectorAll('details')];
const text = leaf => (leaf.title + ' ' + leaf.textContent).toLowerCase();
search.addEventListener('input', () => {
  const wanted = search.value.toLowerCase();
  let shown = 0;
  for (const leaf of leaves) {
    const found = text(leaf).includes(wanted);
    leaf.classList.toggle('hidden', !found);
    shown += found;
  }
  for (const group of groups) {
    const any = group.querySelector('.leaf:not(.hidden)');
    group.parentElement.classList.toggle('hidden', !any);
    if (wanted && any) group.open = true;
  }
  document.getElementById('count').textContent = wanted ? shown + ' of ' + leaves.length : '';
});
for (const [id, open] of [['open', true], ['close', false]])
  document.getElementById(id).addEventListener('click', () => groups.forEach(group => { group.open = open; }));
</script></body></html>
''')

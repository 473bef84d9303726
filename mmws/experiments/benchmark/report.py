"""Results of a benchmark as a table, JSON and a figure."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from typing import Any, Dict, List

import torch
from matplotlib.figure import Figure

import mmws
from mmws.experiments.benchmark.shares import SHARES
from mmws.experiments.markdown import table
from mmws.files import save_figure, write_json, write_text
from mmws.openmmlab.toolkits import TOOLKITS

__all__ = ['describe_machine', 'markdown', 'tables', 'write']

Results = List[Dict[str, Any]]
PLOTTED = {  # color and hatch of a form, readable in black and white
    'mmws': ('black', ''), 'mmws, MMWS_CPP=1': ('0.3', ''), 'mmws, cache=False': ('0.6', ''),
    'a copy each way': ('white', '////'),
    "timm's trick": ('white', ''), 'parametrize': ('0.85', ''), 'mmcv': ('white', 'xxxx')}
DISTRIBUTIONS = ('torch', 'onedl-mmcv', 'mmcv', 'onedl-mmengine', 'mmengine',
                 *(name for toolkit in TOOLKITS.values() for name in toolkit.distributions))


def describe_machine(device: str, work: str) -> dict[str, str]:
    """Return machine, versions and date; ``work`` is the part of the machine in use, for example '2 threads'."""
    cpu = next((line.partition(': ')[2] for line in Path('/proc/cpuinfo').read_text().splitlines()
                if line.startswith('model name')), platform.machine())
    installed = {each.metadata['Name']: each.version for each in distributions()}
    versions = [f'{name} {installed[name]}' for name in DISTRIBUTIONS if name in installed]
    return {'machine': torch.cuda.get_device_name() if device == 'cuda' else
            f'{cpu}, {work}, load {os.getloadavg()[0]:.1f} at the start',
            'versions': ', '.join([f'mmws {mmws.__version__}', *versions]), 'date': f'{date.today()}'}


def tables(results: Results) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return head and rows of a table for each scenario: a row for each form, its times and its additional memory."""
    return {scenario: _table([result for result in results if result['scenario'] == scenario])
            for scenario in dict.fromkeys(result['scenario'] for result in results)}


def _table(results: Results) -> tuple[list[str], list[list[str]]]:
    found = {(result['form'], result['mode']): result for result in results}
    forms, modes = (list(dict.fromkeys(result[key] for result in results)) for key in ('form', 'mode'))
    rows = [[form] for form in forms]
    for row, mode in product(rows, modes):
        row += _cells(found.get((row[0], mode)), found[forms[0], mode])
    return ['', *(cell for mode in modes for cell in (mode, 'memory'))], rows


def _cells(result: dict[str, Any] | None, base: dict[str, Any]) -> list[str]:
    """Return the time relative to ``base``, and the additional memory; empty cells for what was not measured."""
    if result is None or result is base:
        return ['', ''] if result is None else ['1', '']
    known = None not in (result['peak'], base['peak'])
    return [f'{result["ratio"]:.2f} ({result["low"]:.2f}-{result["high"]:.2f})',
            f'{(result["peak"] - base["peak"]) / 2 ** 20:+.0f} MiB' if known else '']


def markdown(results: Results, scenario: str) -> str:
    """Return the table of a scenario in Markdown, and that of the shares of the time, if they were measured."""
    rows = [[result['form'], *(f'{result["shares"][kind]:.0%}' for kind in SHARES)]
            for result in results if result['scenario'] == scenario and 'shares' in result]
    shares = f'\n{table(["share of the time", *SHARES], rows)}\n' if rows else ''
    return f'{table(*tables(results)[scenario])}\n{shares}'


def write(parts: dict[str, Results], about: dict[str, str], folder: Path) -> Sequence[Path]:
    """Write ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'benchmark.{kind}' for kind in ('json', 'md', 'png')]
    write_json(paths[0], {**about, **parts}, indent=1)
    text = '# Benchmark: `python tools/benchmark.py --out docs`\n\n'
    text += ''.join(f'{name}: {value}  \n' for name, value in about.items())
    text += f'\n![ratio of the time to plain convolutions, for each method and network]({paths[2].name})\n'
    for name, results in parts.items():
        text += f'\n## {name}\n' + ''.join(
            f'\n### {scenario}\n\n{markdown(results, scenario)}' for scenario in tables(results))
    write_text(paths[1], text)
    _plot(next(iter(parts.values())), about, paths[2])
    return paths


def _plot(results: Results, about: dict[str, str], path: Path) -> None:
    groups = list(dict.fromkeys((result['scenario'], result['mode']) for result in results))
    forms = [form for form in PLOTTED if any(result['form'] == form for result in results)]
    figure = Figure(figsize=(8, 1.4 + 0.13 * len(groups) * (len(forms) + 1)), layout='constrained')
    axes = figure.subplots()
    axes.margins(y=0.01)
    for index, form in enumerate(forms):
        bars = [result for result in results if result['form'] == form]
        places = [groups.index((bar['scenario'], bar['mode'])) + (index + 0.5) * 0.8 / len(forms) - 0.4 for bar in bars]
        lines = [[bar['ratio'] - bar['low'] for bar in bars], [bar['high'] - bar['ratio'] for bar in bars]]
        axes.barh(places, [bar['ratio'] for bar in bars], 0.8 / len(forms), xerr=lines, label=form, linewidth=0.5,
                  color=PLOTTED[form][0], hatch=PLOTTED[form][1], edgecolor='black', error_kw={'linewidth': 0.8})
    axes.axvline(1, color='black', linewidth=0.8)
    axes.set_yticks(range(len(groups)), [f'{scenario}, {mode}' for scenario, mode in groups], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel('time, plain convolutions = 1; lines: quartiles')
    axes.set_title(about['machine'], fontsize=8)
    axes.legend(fontsize=8)
    save_figure(figure, path, dpi=120)

"""What a benchmark is written to: a table, JSON, a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table

import mmws

__all__ = ['describe_machine', 'markdown', 'table', 'write']

Results = list[dict[str, Any]]
PACKAGES = ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain')


def describe_machine(device: str, work: str) -> dict[str, str]:
    """Return what the figures belong to; ``work`` says how much of the machine was put to it, such as '2 threads'."""
    cpu = next((line.partition(': ')[2] for line in Path('/proc/cpuinfo').read_text().splitlines()
                if line.startswith('model name')), platform.machine())
    here = packages_distributions()
    versions = [f'{here[name][0]} {version(here[name][0])}' for name in PACKAGES if name in here]
    return {'machine': torch.cuda.get_device_name() if device == 'cuda' else
            f'{cpu}, {work}, load {os.getloadavg()[0]:.1f} at the start',
            'versions': ', '.join([f'mmws {mmws.__version__}', *versions]), 'date': f'{date.today()}'}


def columns(results: Results) -> list[tuple[str, str]]:
    return list(dict.fromkeys((result['scenario'], result['mode']) for result in results))


def rows(results: Results) -> list[list[str]]:
    """Return a row a form: its ratios, and how much more memory it takes in training where that is known."""
    found = {(result['scenario'], result['mode'], result['form']): result for result in results}
    forms = list(dict.fromkeys(result['form'] for result in results))
    return [[form, *(_cell(found.get((*column, form)), found[(*column, forms[0])]) for column in columns(results))]
            for form in forms]


def _cell(result: dict[str, Any] | None, base: dict[str, Any]) -> str:
    if result is None:
        return ''
    if result['form'] == base['form']:
        return '1'
    more = '' if None in (result['peak'], base['peak']) else f', {(result["peak"] - base["peak"]) / 2 ** 20:+.0f} MiB'
    return f'{result["ratio"]:.2f} ({result["low"]:.2f}-{result["high"]:.2f}){more}'


def table(results: Results, title: str) -> Table:
    """Return the results as a table for the terminal."""
    made = Table('', *(f'{scenario}\n{mode}' for scenario, mode in columns(results)), title=title)
    for row in rows(results):
        made.add_row(*row)
    return made


def markdown(results: Results) -> str:
    """Return the same table for a README."""
    heads = ['', *(f'{scenario}, {mode}' for scenario, mode in columns(results))]
    lines = [heads, ['---'] * len(heads), *rows(results)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def write(parts: dict[str, Results], about: dict[str, str], folder: Path) -> Sequence[Path]:
    """Write ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'benchmark.{kind}' for kind in ('json', 'md', 'png')]
    paths[0].write_text(json.dumps(about | parts, indent=1) + '\n')
    text = ''.join(f'{name}: {value}  \n' for name, value in about.items())
    paths[1].write_text(text + ''.join(f'\n## {name}\n\n{markdown(results)}' for name, results in parts.items()))
    _plot(next(iter(parts.values())), about, paths[2])
    return paths


def _plot(results: Results, about: dict[str, str], path: Path) -> None:
    shown = columns(results)
    forms = list(dict.fromkeys(result['form'] for result in results))[1:]
    figure = Figure(figsize=(2 + 1.6 * len(shown), 4), layout='constrained')
    axes = figure.subplots()
    for index, form in enumerate(forms):
        points = [(shown.index((result['scenario'], result['mode'])), result) for result in results
                  if result['form'] == form]
        axes.bar([place + (index - len(forms) / 2) * 0.8 / len(forms) for place, _ in points],
                 [result['ratio'] for _, result in points], 0.8 / len(forms), label=form,
                 yerr=[[result['ratio'] - result['low'] for _, result in points],
                       [result['high'] - result['ratio'] for _, result in points]])
    axes.axhline(1, color='black', linewidth=0.8)
    axes.set_xticks(range(len(shown)), [f'{scenario}\n{mode}' for scenario, mode in shown])
    axes.set_ylabel('time, plain convolutions = 1')
    axes.set_title(f'{about["machine"]}; bars: quartiles', fontsize=8)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)

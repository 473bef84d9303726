"""Results of a benchmark as a table, JSON and a figure."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Dict, List

import torch
from matplotlib.figure import Figure

import mmws
from mmws.experiments.markdown import table
from mmws.files import save_figure, write_json, write_text
from mmws.openmmlab.toolkits import TOOLKITS

__all__ = ['columns', 'describe_machine', 'markdown', 'rows', 'write']

Results = List[Dict[str, Any]]
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


def columns(results: Results) -> list[tuple[str, str]]:
    """Return scenario and mode of each column of the table."""
    return list(dict.fromkeys((result['scenario'], result['mode']) for result in results))


def rows(results: Results) -> list[list[str]]:
    """Return a row for each form: its ratios, and its additional memory in training if known."""
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


def markdown(results: Results) -> str:
    """Return the results as a Markdown table."""
    return table(['', *(f'{scenario}, {mode}' for scenario, mode in columns(results))], rows(results)) + '\n'


def write(parts: dict[str, Results], about: dict[str, str], folder: Path) -> Sequence[Path]:
    """Write ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'benchmark.{kind}' for kind in ('json', 'md', 'png')]
    write_json(paths[0], {**about, **parts}, indent=1)
    text = '# Benchmark: `make bench`\n\n' + ''.join(f'{name}: {value}  \n' for name, value in about.items())
    tables = [f'\n## {name}\n\n{markdown(results)}' for name, results in parts.items()]
    write_text(paths[1], ''.join([text, *tables]))
    _plot(next(iter(parts.values())), about, paths[2])
    return paths


def _plot(results: Results, about: dict[str, str], path: Path) -> None:
    groups = columns(results)
    forms = list(dict.fromkeys(result['form'] for result in results))[1:]
    figure = Figure(figsize=(2 + 1.6 * len(groups), 4), layout='constrained')
    axes = figure.subplots()
    for index, form in enumerate(forms):
        bars = [result for result in results if result['form'] == form]
        axes.bar([groups.index((bar['scenario'], bar['mode'])) + (index - len(forms) / 2) * 0.8 / len(forms)
                  for bar in bars], [bar['ratio'] for bar in bars], 0.8 / len(forms), label=form,
                 yerr=[[bar['ratio'] - bar['low'] for bar in bars], [bar['high'] - bar['ratio'] for bar in bars]])
    axes.axhline(1, color='black', linewidth=0.8)
    axes.set_xticks(range(len(groups)), [f'{scenario}\n{mode}' for scenario, mode in groups])
    axes.set_ylabel('time, plain convolutions = 1')
    axes.set_title(f'{about["machine"]}; bars: quartiles', fontsize=8)
    axes.legend(fontsize=7)
    save_figure(figure, path, dpi=120)

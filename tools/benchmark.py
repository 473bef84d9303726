#!/usr/bin/env python3
"""Measure the cost of Weight Standardization, compared to other implementations, and of a whole training step.

After an interrupt, the same command resumes. Writes OUT/benchmark.json, .md and .png.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

try:
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Table

    from mmws.errors import one_line_errors
    from mmws.experiments.benchmark.forms import COST_FORMS, STEP_FORMS
    from mmws.experiments.benchmark.report import describe_machine, tables, write
    from mmws.experiments.benchmark.timing import Scenario, measure
    from mmws.files import check_output_folder, read_json, write_json
    from mmws.ops import cpp_kernels
except (ModuleNotFoundError, ValueError) as error:
    raise SystemExit(f'error: tools/{Path(__file__).name} needs mmws.experiments, which is not in the installed '
                     'package; run it from a checkout of the repository (pip install -e .)'
                     if getattr(error, 'name', '') == 'mmws.experiments' else
                     f'error: {error}; install the missing package (see Install in README.md)') from None

EAGER = {name: form for name, form in COST_FORMS.items() if not form.compiled}
PARTIAL = 'benchmark.part.json'
COST, STEP = 'cost of Weight Standardization', 'the step as a whole'


def plan(quick: bool, device: str) -> dict[str, list[Scenario]]:
    has_cpp = device == 'cpu' and cpp_kernels.build() is not None
    every, eager = ({name: form for name, form in forms.items() if has_cpp or not form.cpp}
                    for forms in (COST_FORMS, EAGER))
    forms, rounds = (eager, 10) if quick else (every, 14)
    cost = [
        Scenario('ResNet-50', (224, 224), rounds, forms), Scenario('ResNet-50', (512, 512), rounds // 2, forms),
        Scenario('ResNet-50', (224, 224), 4, eager, ('training',), micro_steps=8),
        Scenario('RetinaNet', (512, 512), 4, eager)]
    if quick:
        return {COST: cost}
    cost.append(Scenario('Mask R-CNN', (512, 512), 4, eager))
    if device == 'cuda':
        cost += [Scenario('Mask R-CNN', (800, 1333), 20, every, amp=amp) for amp in (False, True)]
    without_batch_norm = {name: form for name, form in STEP_FORMS.items() if form.converted}  # BN fails on one image
    return {COST: cost, STEP: [
        Scenario(network, size, rounds, STEP_FORMS if 'Mask' in network else without_batch_norm, ('training',),
                 with_shares=device == 'cpu')
        for network, size, rounds in (('stock Mask R-CNN', (512, 512), 4), ('stock DeepLabv3', (256, 256), 4),
                                      ('demo Mask R-CNN', (128, 128), 20), ('demo DeepLabv3', (128, 128), 20))]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='skip torch.compile, Mask R-CNN, the whole step')
    parser.add_argument('--shared', action='store_true',
                        help='measure the CPU time of one thread, for a machine with other load')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), help='folder for the results')
    options = parser.parse_args()
    with one_line_errors():
        check_output_folder(options.out)
    logging.disable(logging.WARNING)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    work = 'CPU time of 1 thread' if options.shared else f'{torch.get_num_threads()} threads'
    about, parts = describe_machine(device, work), plan(options.quick, device)
    console = Console()
    console.print(*(f'{name}: {value}' for name, value in about.items()), sep='\n')
    try:
        with one_line_errors():
            results = run(parts, about, options, device, console)
    except KeyboardInterrupt:
        raise SystemExit('interrupted; run the same command again to resume') from None
    for part in results.values():
        for title, (head, rows) in tables(part).items():
            table = Table(*head, title=title)
            for row in rows:
                table.add_row(*row)
            console.print(table)
    console.print(*write(results, about, options.out), sep='\n')
    (options.out / PARTIAL).unlink()


def run(parts: dict[str, list[Scenario]], about: dict[str, str], options: argparse.Namespace, device: str,
        console: Console) -> dict[str, list]:
    """Measure the scenarios, and save the results after each; those of an interrupted run on this machine count."""
    partial, results = options.out / PARTIAL, {}
    partial.parent.mkdir(parents=True, exist_ok=True)
    saved = read_json(partial) if partial.exists() else {}
    if any(without_load(saved.get(key, '')) != without_load(about[key]) for key in ('machine', 'versions')):
        saved = {}
    with Progress(TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                  console=console) as progress:
        task = progress.add_task('', total=sum(effort(scenario) for part in parts.values() for scenario in part))
        for part, scenarios in parts.items():
            results[part] = []
            for scenario in scenarios:
                scenario = replace(scenario, shared=options.shared)
                progress.update(task, description=scenario.title)
                share = effort(scenario) / scenario.runs
                found = [result for result in saved.get(part, []) if result['scenario'] == scenario.title]
                if {result['form'] for result in found} == set(scenario.forms):
                    console.print(f'{scenario.title}: from {partial}; delete it to measure again')
                    progress.advance(task, effort(scenario))
                else:
                    found = measure(scenario, device, lambda share=share: progress.advance(task, share))
                results[part] += found
                write_json(partial, {**about, **results})
    return results


def without_load(machine: str) -> str:
    """Return the description of a machine without its load.

    >>> without_load('EPYC, 2 threads, load 1.2 at the start')
    'EPYC, 2 threads'
    """
    return machine.partition(', load ')[0]


def effort(scenario: Scenario) -> float:
    """Return the relative time of a scenario, for the progress bar: its pixels, times 4 for a detector."""
    heads = 1 if scenario.network == 'ResNet-50' else 4
    return scenario.runs * scenario.size[0] * scenario.size[1] * scenario.micro_steps * heads


if __name__ == '__main__':
    main()

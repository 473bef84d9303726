"""The page of a run on a GPU, ``docs/gpu.md``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmws.experiments.markdown import table

__all__ = ['TARGETS', 'compare_with_targets', 'page']

TARGETS: dict[str, tuple[Callable[[dict[str, Any]], bool], str, float]] = {
    'training step, eager: time, at most 1.01 of plain':
        (lambda row: row['mode'] == 'training' and not row['compiled'], 'ratio', 1.01),
    'training step, compiled: time, at most 1.01 of plain':
        (lambda row: row['mode'] == 'training' and row['compiled'], 'ratio', 1.01),
    'inference: time, 1.00 of plain (below 1.005)': (lambda row: row['mode'] == 'inference', 'ratio', 1.005),
    'training step: at most 40 launches more than plain':
        (lambda row: row['mode'] == 'training', 'more_launches', 40),
}
HEAD = '''# Layers, cache and cost on a GPU

`python tests/gpu/run.py` writes this page and `gpu.json`. It needs torch >= 2.11 with CUDA, triton and numpy. It needs
no package of OpenMMLab and downloads nothing. No scenario of the benchmark starts after 5 minutes. With the options
`--device cpu --quick` it runs the same code without a GPU; `tests/gpu/test_run.py` does so in CI.

'''
MEASURED = '''A ResNet-50 with GroupNorm trains and infers on 1 or 2 images of 800x1333 or 224x224, in fp32, under bf16
autocast, and compiled. Its convolutions are plain, of mmws, with mmcv's formula or with timm's trick
([convs.py](../mmws/experiments/benchmark/convs.py)); compiled, only the first two. These forms run in turn, in a random
order in each round. Time: the median of the ratios to plain in the same round, quartiles in brackets. Launches:
kernels, copies and fills of one step, by torch's profiler.
'''


def page(results: Mapping[str, Any] | None, checks: Mapping[str, str]) -> str:
    """Return the page; ``results`` None: not run. ``checks``: what each check asserts, by name."""
    if results is None:
        found, about = {}, '**Not run**: there was no GPU.\n'
    else:
        found = {check['name']: check for check in results['checks']}
        about = ''.join(f'{name}: {value}  \n' for name, value in results['about'].items())
    targets = table(['target', 'result'], ([name, _target(results, name)] for name in TARGETS))
    lines = table(['check', 'what is right', 'result'],
                  ([_readable(name), text, _outcome(found.get(name))] for name, text in checks.items()))
    return (f'{HEAD}{about}\n## Targets\n\n{targets}\n\n## Checks\n\n{lines}\n\n## Cost\n\n{MEASURED}'
            f'{"" if results is None else _cost(results)}')


def compare_with_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each target the largest value of mmws, where it is, and whether it is met; None if not measured."""
    plain = {(row['scenario'], row['mode']): row['launches'] for row in rows if row['form'] == 'plain'}
    ours = [{**row, 'more_launches': row['launches'] and row['launches'] - plain[row['scenario'], row['mode']]}
            for row in rows if row['form'] == 'mmws']
    compared = []
    for name, (concerns, key, limit) in TARGETS.items():
        found = [row for row in ours if concerns(row) and row[key] is not None]
        worst = max(found, key=lambda row: row[key], default=None)
        compared.append({'target': name, 'met': None if worst is None else worst[key] <= limit,
                         'worst': None if worst is None else round(worst[key], 3),
                         'where': None if worst is None else worst['scenario']})
    return compared


def _target(results: Mapping[str, Any] | None, name: str) -> str:
    if results is None:
        return 'not run'
    target = next(each for each in results['targets'] if each['target'] == name)
    if target['met'] is None:
        return 'not measured'
    verdict = 'only a GPU counts' if results['device'] != 'cuda' else 'met' if target['met'] else '**not met**'
    return f'{verdict}: {target["worst"]} at worst ({target["where"]})'


def _outcome(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return 'not run'
    if check['outcome'] == 'not here':
        return check['why']  # type: ignore[no-any-return]
    return 'passed' if check['outcome'] == 'passed' else f'**failed**: {check["why"]}'.replace('|', '\\|')


def _readable(name: str) -> str:
    return name[len('check_'):].replace('_', ' ')


def _cost(results: Mapping[str, Any]) -> str:
    lines = []
    for row in results['benchmark']:
        ratio = '1' if row['form'] == 'plain' else f'{row["ratio"]:.3f} ({row["low"]:.3f}-{row["high"]:.3f})'
        kernels = [f'{row["launches"]}', f'{row["kernel_seconds"] * 1e3:.2f}'] if row['launches'] else ['not seen', '']
        lines.append([row['scenario'], row['mode'], row['form'], ratio, f'{row["seconds"] * 1e3:.2f}', *kernels])
    missing = ''.join(f'- {title}: not measured, {why}\n' for title, why in results['not_measured'].items())
    return (f'\n{table(["", "", "form", "time", "ms", "launches", "ms in kernels"], lines)}\n'
            + (f'\n{missing}' if missing else ''))

#!/usr/bin/env python3
"""Check layers, cache and conversion on a GPU and measure their cost, with torch alone: docs/gpu.md."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402

from mmws import WSError, __version__  # noqa: E402
from mmws.files import check_output_folder, write_json, write_text  # noqa: E402
from tests.gpu import report  # noqa: E402
from tests.gpu.benchmark import measure, plan, runs  # noqa: E402
from tests.gpu.checks import NotHere, all_checks  # noqa: E402

MINUTES = 5  # no scenario of the benchmark starts later


def main(arguments: list[str] | None = None) -> int:
    """Run everything and write the results; return 1 if a check failed, else 0."""
    options = parse(arguments)
    checks = all_checks()
    texts = {name: (check.__doc__ or '').partition('\n')[0] for name, check in checks.items()}
    out = options.out or (REPOSITORY / ('docs' if options.device == 'cuda' and not options.quick else 'work_dirs/gpu'))
    if options.page:
        write_text(out / 'gpu.md', report.page(read(out / 'gpu.json'), texts))
        return 0
    try:
        check_device(options.device)
        check_output_folder(out)
    except WSError as error:
        sys.exit(f'error: {error}')
    start = time.monotonic()
    results: dict[str, Any] = {'device': options.device, 'about': describe(options),
                               'checks': run_checks(checks, options.device)}
    results['benchmark'], results['not_measured'] = run_benchmark(options, start)
    results['targets'] = report.compare_with_targets(results['benchmark'])
    results['about']['time'] = f'{time.monotonic() - start:.0f} s'
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / 'gpu.json', results, indent=1)
    write_text(out / 'gpu.md', report.page(results, texts))
    for target in results['targets']:
        print(f'{target["target"]}: {target["worst"]} at worst, in {target["where"]}')
    failed = [check['name'] for check in results['checks'] if check['outcome'] == 'failed']
    print(f'{out / "gpu.md"}: {len(failed)} of {len(checks)} checks failed {" ".join(failed)}')
    return 1 if failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='benchmark a small network, to see that the code runs')
    parser.add_argument('--out', type=Path, help='folder for gpu.json and gpu.md (default: docs; on the CPU or with '
                                                 '--quick: work_dirs/gpu)')
    parser.add_argument('--page', action='store_true',
                        help='only write gpu.md again, from gpu.json; without that file it says "not run"')
    return parser.parse_args(arguments)


def check_device(device: str) -> None:
    """Raise WSError if torch is too old or the GPU cannot be used."""
    if [int(part) for part in torch.__version__.split('.')[:2]] < [2, 11]:
        raise WSError(f'tests/gpu/run.py needs torch >= 2.11, got {torch.__version__}; install a newer one')
    if device == 'cuda' and not torch.cuda.is_available():
        raise WSError(f'torch {torch.__version__} finds no GPU; check nvidia-smi and that torch is a build with CUDA, '
                      'or use --device cpu --quick')


def describe(options: argparse.Namespace) -> dict[str, str]:
    """Return command, machine, versions and date."""
    others = ', '.join(f'{name} {version_of(name)}' for name in ('triton', 'numpy'))
    gpu = options.device == 'cuda'
    machine = torch.cuda.get_device_name() if gpu else f'{platform.machine()}, {torch.get_num_threads()} threads'
    return {'command': f'python tests/gpu/run.py --device {options.device}{" --quick" if options.quick else ""}',
            'machine': machine,
            'versions': f'mmws {__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN '
                        f'{torch.backends.cudnn.version()}, {others}',
            'date': f'{date.today()}'}


def version_of(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except ModuleNotFoundError:
        return 'not installed'


def run_checks(checks: Mapping[str, Callable[[str], None]], device: str) -> list[dict[str, str]]:
    """Run each check and print its result; an error in one does not stop the others."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # the checks compare with float64
    results = []
    for name, check in checks.items():
        outcome, why, start = 'passed', '', time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                check(device)
        except NotHere as reason:
            outcome, why = 'not here', str(reason)
        except Exception as error:  # whatever it is, it is the result
            outcome, why = 'failed', f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}'
        print(f'{name[len("check_"):]}: {outcome} {why} ({time.monotonic() - start:.1f} s)', flush=True)
        results.append({'name': name, 'outcome': outcome, 'why': why})
    torch.backends.cudnn.allow_tf32 = tf32
    return results


def run_benchmark(options: argparse.Namespace, start: float) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the results, and the scenarios that were not measured with the reason."""
    scenarios, rows, missing = plan(options.quick), [], {}
    total, done, began = sum(map(effort, scenarios)), 0.0, time.monotonic()
    for number, scenario in enumerate(scenarios, 1):
        passed = time.monotonic() - began
        left = f'about {passed / done * (total - done):.0f} s left' if done else ''
        print(f'benchmark {number} of {len(scenarios)}: {scenario.title}, {passed:.0f} s so far {left}', flush=True)
        if time.monotonic() - start > 60 * MINUTES:
            missing[scenario.title] = f'the first {MINUTES} minutes were over'
        else:
            try:
                rows += measure(scenario, options.device)
            except (RuntimeError, ImportError) as error:  # such as too little memory, or no compiler
                missing[scenario.title] = f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}'
                print(missing[scenario.title], flush=True)
        done += effort(scenario)
    return rows, missing


def effort(scenario: Any) -> float:
    """Return the relative time of a scenario: most steps wait for launches, compilation takes as long as many steps."""
    return float(runs(scenario) * (1 + scenario.size[0] * scenario.size[1] * scenario.batch / 1e6)
                 * (6 if scenario.compiled else 1))


def read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == '__main__':
    sys.exit(main())

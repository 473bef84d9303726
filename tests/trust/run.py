"""``make trust``: run the slow checks, each file in its own pytest process, and write docs/trust.md.

usage: run.py [NAME ...]; `interruption` runs test_interruption.py and keeps the other results.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from mmws.experiments.benchmark.report import describe_machine

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / 'docs'


def main() -> None:
    checks = {path.stem[len('test_'):]: path for path in sorted(HERE.glob('test_*.py'))}
    names = sys.argv[1:] or list(checks)
    if unknown := sorted(set(names) - set(checks)):
        sys.exit(f'error: unknown check {", ".join(unknown)}; choose from {", ".join(checks)}')
    passed = [run_check(name, checks[name]) for name in names]
    (DOCS / 'trust.md').write_text(render(DOCS / 'trust'))
    sys.exit(0 if all(passed) else 1)


def run_check(name: str, path: Path) -> bool:
    """Run one file, write its results to docs/trust/NAME.json, and return whether all tests passed."""
    about = {'command': f'make trust NAME={name}', **describe_machine('cpu', f'{os.cpu_count()} cores')}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        command = [sys.executable, '-m', 'pytest', str(path), f'--junitxml={report}', '-o', 'junit_family=xunit1']
        passed = subprocess.run(command, cwd=HERE.parents[1]).returncode == 0
        tests = [read_result(case) for case in ElementTree.parse(report).iter('testcase')] if report.exists() else []
    (DOCS / 'trust').mkdir(exist_ok=True)
    (DOCS / 'trust' / f'{name}.json').write_text(json.dumps({**about, 'tests': tests}, indent=1) + '\n')
    return passed


def read_result(case: ElementTree.Element) -> dict[str, Any]:
    problem = next((child for child in case if child.tag in ('failure', 'error', 'skipped')), None)
    return {'test': case.get('name'), 'outcome': 'passed' if problem is None else problem.tag,
            'why': '' if problem is None else (problem.get('message') or '').partition('\n')[0],
            'rows': [[each.get('name'), each.get('value')] for each in case.iter('property')]}


def render(folder: Path) -> str:
    """Return the Markdown document, with one table per JSON file."""
    lines = ['# Slow checks: `make trust`', '',
             '`make trust` writes this file from `docs/trust/*.json`; do not edit it. '
             '`make trust NAME=fuzz` runs one part again.']
    for path in sorted(folder.glob('*.json')):
        results = json.loads(path.read_text())
        lines += ['', f'## {path.stem.replace("_", " ").capitalize()}', '',
                  f'`{results["command"]}`, {results["date"]}, {results["machine"]}; {results["versions"]}', '',
                  '| check | result |', '| --- | --- |']
        for test in results['tests']:
            lines += [f'| {check} | {result} |' for check, result in test['rows']]
            if test['outcome'] != 'passed':
                lines.append(f'| {test["test"]} | **{test["outcome"]}**: {test["why"]} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()

"""``make trust``: run the checks that take minutes, each file in a pytest of its own, and write docs/trust.md.

usage: python tests/trust/run.py [NAME ...], such as `interruption` for test_interruption.py; the others' rows stay.
"""

from __future__ import annotations

import json
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
    known = {path.stem.removeprefix('test_'): path for path in sorted(HERE.glob('test_*.py'))}
    names = sys.argv[1:] or list(known)
    if set(names) - set(known):
        sys.exit(f'error: there is no check {", ".join(sorted(set(names) - set(known)))}; known are {", ".join(known)}')
    passed = [check(name, known[name]) for name in names]
    (DOCS / 'trust.md').write_text(render(DOCS / 'trust'))
    sys.exit(0 if all(passed) else 1)


def check(name: str, path: Path) -> bool:
    """Run one file; its results are written whether it passes or not."""
    about = {'command': f'python tests/trust/run.py {name}', **describe_machine('cpu', '2 cores')}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        command = [sys.executable, '-m', 'pytest', str(path), f'--junitxml={report}', '-o', 'junit_family=xunit1']
        passed = subprocess.run(command, cwd=HERE.parents[1]).returncode == 0
        tests = [read(case) for case in ElementTree.parse(report).iter('testcase')]
    (DOCS / 'trust').mkdir(exist_ok=True)
    (DOCS / 'trust' / f'{name}.json').write_text(json.dumps({**about, 'tests': tests}, indent=1) + '\n')
    return passed


def read(case: ElementTree.Element) -> dict[str, Any]:
    failed = next((child for child in case if child.tag in ('failure', 'error', 'skipped')), None)
    return {'test': case.get('name'), 'outcome': 'passed' if failed is None else failed.tag,
            'why': '' if failed is None else (failed.get('message') or '').partition('\n')[0],
            'rows': [[each.get('name'), each.get('value')] for each in case.iter('property')]}


def render(folder: Path) -> str:
    """Return the document: a table a file."""
    lines = ['# What was checked beside `make test`', '',
             'Made by `make trust` from [trust/*.json](trust), not by hand; '
             '`python tests/trust/run.py NAME` runs one part again.']
    for path in sorted(folder.glob('*.json')):
        results = json.loads(path.read_text())
        lines += ['', f'## {path.stem.replace("_", " ").capitalize()}', '',
                  f'`{results["command"]}`, {results["date"]}, {results["machine"]}; {results["versions"]}', '',
                  '| | |', '| --- | --- |']
        for test in results['tests']:
            lines += [f'| {what} | {measured} |' for what, measured in test['rows']]
            if test['outcome'] != 'passed':
                lines.append(f'| {test["test"]} | **{test["outcome"]}**: {test["why"]} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()

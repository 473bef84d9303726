"""Run all tests in each environment and write docs/compatibility.md. ``make matrix`` runs it.

usage: python3 requirements/matrix.py [ENVIRONMENT ...]

An environment with a result of the same sources is not run again, unless it is named. It needs only Python's standard
library.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import setup_env
import stacks
from compatibility import ENVIRONMENTS, read_results, result_path, write, write_page

ROOT = stacks.HERE.parent
LOGS = Path('work_dirs', 'matrix')
SOURCES = ('mmws', 'tests', 'tools', 'configs', 'examples', 'pyproject.toml', 'setup.py')
IN_PARALLEL = ('-n', 'auto', '--maxprocesses', '4', '--dist', 'loadfile')  # as in the Makefile
PROBLEMS = ('failure', 'error', 'skipped')


def main(root: Path = ROOT) -> None:
    named = sys.argv[1:]
    unknown = sorted(set(named) - set(ENVIRONMENTS))
    if unknown:
        sys.exit(f'error: unknown environment {", ".join(unknown)}; choose from {", ".join(ENVIRONMENTS)}')
    try:
        red = [name for name in named or ENVIRONMENTS if not check(root, name, again=bool(named))]
    except KeyboardInterrupt:
        sys.exit('\n[matrix] interrupted; run the same command again: it keeps the environments that are done')
    if red:
        sys.exit(f'[matrix] not green: {", ".join(red)}; see docs/compatibility.md and {LOGS}')


def check(root: Path, name: str, again: bool) -> bool:
    """Run the tests in an environment, or keep its result; return whether all passed."""
    sources = fingerprint(root, name)
    result = read_results(root).get(name, {})
    kept = not again and result.get('sources') == sources
    if not kept:
        try:
            result = {**run(root, name), 'sources': sources}
        except SystemExit as failure:
            print(f'{failure}\n[matrix] {name}: no result', flush=True)
            return False
        write(result_path(root, name), json.dumps(result, indent=1) + '\n')
    write_page(root)
    counts = ', '.join(f'{result[outcome]} {outcome}' for outcome in ('passed', 'failed', 'errors', 'skipped'))
    print(f'[matrix] {name}: {counts}{"; kept, the sources are the same" if kept else ""}', flush=True)
    return not result['failures']


def fingerprint(root: Path, name: str) -> str:
    """Return a hash of the code, the tests, and the environment's pinned versions."""
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '--', *SOURCES], cwd=root, check=True,
                            stdout=subprocess.PIPE, text=True).stdout.splitlines()
    paths = [root / path for path in sorted(set(listed))] + stacks.pin_files(ENVIRONMENTS[name][0])
    return hashlib.sha256(b''.join(path.read_bytes() for path in paths if path.is_file())).hexdigest()[:16]


def run(root: Path, name: str) -> dict:
    """Set up an environment and return its versions and the outcome of all tests.

    Raises:
        SystemExit: with the reason, if the environment or pytest fails.
    """
    python = environment(root, ENVIRONMENTS[name][0])
    (root / LOGS).mkdir(parents=True, exist_ok=True)
    outcome = run_tests(python, root, root / LOGS / f'{name}.log')
    described = subprocess.run([python, stacks.HERE / 'describe_env.py'], check=True, stdout=subprocess.PIPE, text=True)
    return {'command': f'make matrix ENV={name}', 'date': f'{date.today()}', **json.loads(described.stdout), **outcome}


def environment(root: Path, stack: str) -> Path:
    """Make the virtual environment, if necessary, and return its Python."""
    venv = root / ('.venv' if stack == 'onedl' else f'.venv-{stack}')
    setup_env.set_up(venv, stack)
    return venv / 'bin' / 'python'


def run_tests(python: Path, folder: Path, log: Path) -> dict:
    """Run pytest in ``folder``, with its output in ``log``, and return what :func:`read_report` returns."""
    report = log.with_suffix('.xml')
    report.unlink(missing_ok=True)
    command = [python, '-m', 'pytest', *IN_PARALLEL, '-p', 'no:cacheprovider', '--continue-on-collection-errors',
               '-o', 'junit_family=xunit1', f'--junitxml={report}']
    variables = {**os.environ, 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1',
                 'PYTEST_ADDOPTS': ''}  # all tests, in their order
    with log.open('w', buffering=1) as file, subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables) as process:
        try:
            show_progress(log.stem, process.stdout, file)
        except KeyboardInterrupt:
            process.terminate()
            raise
    if process.returncode not in (0, 1) or not report.exists():
        sys.exit(f'pytest ended with exit status {process.returncode}; see {log}')
    return read_report(report)


def show_progress(name: str, output, file) -> None:
    """Copy pytest's output to ``file`` and print its percentage, without a terminal at each tenth."""
    terminal, failed, shown = sys.stdout.isatty(), 0, -1
    for line in output:
        file.write(line)
        progress = re.search(r'(?:^|\s)([.FEsxX]+)\s+\[ *(\d+)%\]', line)
        if progress:
            failed += progress[1].count('F') + progress[1].count('E')
            percent = int(progress[2])
            if terminal or percent // 10 > shown // 10:
                shown = percent
                print(f'[matrix] {name}: {percent}%, {failed} failed', end='\r' if terminal else '\n', flush=True)


def read_report(path: Path) -> dict:
    """Return the number of tests by outcome, the skips by reason, and the names of failed tests."""
    outcomes, skips, failures = Counter(), Counter(), []
    cases = {(case.get('file'), case.get('name')): case for case in ElementTree.parse(path).iter('testcase')}
    for case in cases.values():  # a test that crashes is run again and reported each time
        problem = next((child for child in case if child.tag in PROBLEMS), None)
        outcomes['passed' if problem is None else problem.tag] += 1
        if problem is not None and problem.tag == 'skipped':
            skips[reason(problem)] += 1
        elif problem is not None:
            failures.append('::'.join(filter(None, (case.get('file'), case.get('name')))))
    return {'passed': outcomes['passed'], 'failed': outcomes['failure'], 'errors': outcomes['error'],
            'skipped': outcomes['skipped'], 'skips': dict(sorted(skips.items())), 'failures': failures}


def reason(skipped: ElementTree.Element) -> str:
    """Return why a test was skipped, in one line."""
    text = skipped.get('message', '')
    if text == 'collection skipped':  # a whole module; the text is a tuple: path, line, reason
        text = ast.literal_eval(skipped.text)[2].partition('Skipped: ')[2]
    return ' '.join(text.split())


if __name__ == '__main__':
    main()

"""Write docs/compatibility.md from docs/compatibility/*.json, one file per environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

ENVIRONMENTS = {  # name: its stack in stacks.py, and what it stands for
    'guide': ('guide', "what the toolkits' guides lead to"),
    'prebuilt': ('prebuilt', 'the last torch for which upstream has a prebuilt mmcv (built here)'),
    'oldest': ('oldest', 'the lower bounds'),
    'default': ('onedl', '`make setup`'),
    'upstream': ('openmmlab', '`make setup STACK=openmmlab`'),
    'newest': ('newest', 'the newest releases'),
}
PAGE = """\
# Where it runs: `make matrix`

`make matrix` makes each environment, runs all tests in it, and writes this page from `docs/compatibility/*.json`; do
not edit it. A result is of the date in its section. If the code, the tests or the pinned versions changed since, `make
matrix` runs that environment again. `make matrix ENV=guide` runs one again in any case; the others are prebuilt,
oldest, default, upstream and newest. The Python of the environment must be on PATH or in `~/.pyenv/versions`. The log
is `work_dirs/matrix/NAME.log`. The pinned versions are in `requirements/`. [Install](install.md) says how to get one.
"""


def result_path(root: Path, name: str) -> Path:
    return root / 'docs' / 'compatibility' / f'{name}.json'


def read_results(root: Path) -> dict[str, dict]:
    """Return the results by environment, in the order of :data:`ENVIRONMENTS`."""
    paths = {name: result_path(root, name) for name in ENVIRONMENTS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def write_page(root: Path) -> None:
    write(root / 'docs' / 'compatibility.md', page(read_results(root)))


def write(path: Path, text: str) -> None:
    """Write a file at once, so that an interruption leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    partial.write_text(text)
    partial.replace(path)


def page(results: dict[str, dict]) -> str:
    return '\n'.join([PAGE, table(results), *(section(name, result) for name, result in results.items())])


def table(results: dict[str, dict]) -> str:
    """Return a Markdown table with a row per environment."""
    columns = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'numpy')
    lines = [row('environment', 'Python', *columns, 'tests passed', 'failed', 'skipped'), row(*['---'] * 12)]
    for name, result in results.items():
        tests = sum(result[outcome] for outcome in ('passed', 'failed', 'errors', 'skipped'))
        lines.append(row(f'{name}: {ENVIRONMENTS[name][1]}', result['python'],
                         *(package(result, column) for column in columns), f'{result["passed"]:,}',
                         result['failed'] + result['errors'], f'{result["skipped"]} ({result["skipped"] / tests:.1%})'))
    return ''.join(lines)


def row(*cells: object) -> str:
    escaped = (str(cell).replace('|', r'\|') for cell in cells)
    return f'| {" | ".join(escaped)} |\n'


def package(result: dict, name: str) -> str:
    """Return the version, for the OneDL distributions with the family."""
    if result['versions'][name] is None:
        return 'none'
    distribution, version = result['versions'][name].split()
    family = 'OneDL ' if distribution.startswith('onedl-') else ''
    return f'{family}{version}{"" if name != "mmcv" or result["mmcv_operators"] else ", no operators"}'


def section(name: str, result: dict) -> str:
    """Return the failures, and the skips by reason, of an environment."""
    lines = [f'## {name}\n\n', f'`{result["command"]}`, {result["date"]}, {result["machine"]}\n']
    if result['skips']:
        lines += ['\n', row('skipped', 'reason'), row('---', '---')]
        lines += [row(count, reason) for reason, count in result['skips'].items()]
    if result['failures']:
        lines += ['\n', 'Failed:\n\n', *(f'- `{test}`\n' for test in result['failures'])]
    return ''.join(lines)

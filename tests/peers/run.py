"""``make test-peers``: run the tests of torch, mmengine and mmseg with Weight Standardization in every convolution.

The tests come from torch's package and from the source distributions of mmengine (OneDL) and mmseg (upstream). The
toolkits' wheels have no tests; the source distributions of mmdet, mmcv and mmpretrain have no tests of models.
Each test runs twice: with torch's convolutions and with mmws's. A test that fails only with mmws's needs a reason in
:data:`REASONS`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import mmseg
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.append(str(REPOSITORY / 'requirements'))
import setup_env  # noqa: E402 (a script beside others, not a package)
import stacks  # noqa: E402

FOLDER = REPOSITORY / 'work_dirs' / 'peers'
COUNTS = REPOSITORY / 'docs' / 'peers.json'  # for the page; a test compares them
SUITES = {'torch': (), 'mmengine': ('onedl', 'onedl-mmengine', 'tests/test_model'),
          'mmseg': ('openmmlab', 'mmsegmentation', 'tests/test_models')}
REASONS = {  # a part of the failure's message -> the reason of the failure
    'needs a fan-in of at least 2': 'one element has no standard deviation; the `mmws.` prefix leaves the layer plain',
    'called with a weight that is not its own': 'refused: standardization would remove the scale of the fused norm',
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    table, counts = Table('suite', 'tests', 'pass', 'pass with WS'), {}
    differences = []
    for name, source in SUITES.items():
        tests = unpack(*source) if source else HERE / 'test_torch_nn.py'
        plain, standardized = run(name, tests), run(name, tests, '-p', 'standardized')
        counts[name] = [len(plain), list(plain.values()).count(''), list(standardized.values()).count('')]
        table.add_row(name, *map(str, counts[name]))
        differences += [f'{name}: {test}: {message}' for test, message in standardized.items()
                        if message and not plain.get(test, message)]
    Console().print(table)
    COUNTS.write_text(json.dumps({**counts, 'only with WS': len(differences)}, indent=1) + '\n')
    unexplained = [difference for difference in differences if not explain(difference)]
    if unexplained:
        sys.exit('error: these tests fail only with WS, without a known reason:\n' + '\n'.join(unexplained))


def pin(stack: str, name: str) -> str:
    """Return the version and the hashes of a distribution in the lock of a stack, in pip's format."""
    return stacks.read_pins([stacks.HERE / f'{stack}.lock'])[name]


def unpack(stack: str, name: str, tests: str) -> Path:
    """Return the tests of a source distribution, unpacked without its package: they test the installed package."""
    (FOLDER / f'{name}.lock').write_text(pin(stack, name))
    subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', *setup_env.LOCKED, '--no-binary', ':all:',
                    '-d', FOLDER, '-r', FOLDER / f'{name}.lock'], check=True)
    archive = next(FOLDER.glob(f'{name.replace("-", "?")}-*.tar.gz'))
    with tarfile.open(archive) as file:
        members = [member for member in file if member.name.split('/')[1:2] == ['tests']]
        file.extractall(FOLDER, members, filter='data')
    root = FOLDER / archive.name[:-len('.tar.gz')]
    configs = Path(mmseg.__file__).parent / '.mim' / 'configs'
    if not (root / 'configs').exists():  # mmseg's tests read them there
        (root / 'configs').symlink_to(configs)
    return root / tests


def run(name: str, tests: Path, *options: str) -> dict[str, str]:
    """Return the failure of each test, or '' if it passed."""
    report = FOLDER / f'{name}{len(options)}.xml'
    command = [sys.executable, '-m', 'pytest', '-q', '-c', os.devnull, '-p', 'no:cacheprovider', '-W', 'ignore',
               '--tb=no', '--continue-on-collection-errors', f'--rootdir={tests.parent}', f'--junitxml={report}',
               *options, tests]
    path = os.pathsep.join([str(HERE), str(REPOSITORY)])
    subprocess.run(command, cwd=tests.parents[1], env={**os.environ, 'PYTHONPATH': path})
    return {f'{case.get("classname")}.{case.get("name")}': failure(case)
            for case in ElementTree.parse(report).iter('testcase') if case.find('skipped') is None}


def failure(case: ElementTree.Element) -> str:
    return next((found.get('message', '').split('\n')[0] for kind in ('failure', 'error')
                 if (found := case.find(kind)) is not None), '')


def explain(difference: str) -> bool:
    """Print the reason of a failure with WS; return whether it is known."""
    reason = next((why for part, why in REASONS.items() if part in difference), None)
    print(f'{difference}\n  {reason or "not explained"}')
    return reason is not None


if __name__ == '__main__':
    main()

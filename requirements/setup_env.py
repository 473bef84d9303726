"""Make a virtual environment with pinned versions. ``make setup`` runs it. It needs only Python's standard library.

usage: python3 requirements/setup_env.py VENV STACK
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mmcv_wheel
import stacks
from mmcv_wheel import RUN_AGAIN, say
from stacks import HERE, STACKS

CPU_TORCH = HERE / 'torch-cpu.lock'
MMCV_BUILD_REQUIREMENTS = (
    'setuptools', 'wheel', 'ninja', 'psutil', 'packaging', 'numpy',
    'filelock', 'fsspec', 'jinja2', 'markupsafe', 'mpmath', 'networkx', 'sympy', 'typing-extensions')  # torch's
LOCKED = ('--require-hashes', '--no-deps', '--no-build-isolation')
UNLOCKED = ('--no-deps',)


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[2] not in STACKS:
        sys.exit(f'usage: make setup [STACK={"|".join(STACKS)}]')
    set_up(Path(sys.argv[1]).absolute(), sys.argv[2])


def set_up(venv: Path, name: str) -> None:
    """Make ``venv`` with the stack ``name``. An environment with the same inputs is left unchanged.

    Raises:
        SystemExit: with the reason, if a step fails.
    """
    stack, files = STACKS[name], stacks.pin_files(name)
    stamp, state = venv / 'mmws-setup', _state(files, venv)
    if stamp.is_file() and stamp.read_text() == state:
        return
    started, pins = time.monotonic(), stacks.read_pins(files)
    base = stacks.find_python(stack.python)
    say(f'setting up {venv} with the {name} stack (Python {stack.python}, {pins["torch"].split()[0]}, '
        f'{pins[stack.mmcv].split()[0]})')
    python = make_venv(base, venv)
    options = LOCKED if stack.locked else UNLOCKED
    say('1/4 torch and build tools (download: several GB; onedl and openmmlab without a GPU: 0.2 GB)')
    install_first(python, pins, stack.locked)
    say('2/4 mmcv with compiled operators')
    wheel = mmcv_wheel.mmcv_wheel(python, pins[stack.mmcv], options, venv / 'mmcv-build.log')
    pip(python, '--no-deps', '--force-reinstall', str(wheel))  # pip would keep one that is built for another torch
    say('3/4 the toolkits')
    for path in files[-2:]:  # without torch.lock
        pip(python, *options, '-r', str(path))
    mmcv_wheel.check_operators(python)
    say('4/4 mmws')
    pip(python, '--no-deps', '--no-build-isolation', '-e', str(HERE.parent))
    stamp.write_text(state)
    say(f'done in {(time.monotonic() - started) / 60:.1f} min')


def _state(files: list[Path], venv: Path) -> str:
    """Return a fingerprint of the environment's inputs: setup runs again when it changes."""
    scripts = [HERE / f'{name}.py' for name in ('setup_env', 'mmcv_wheel', 'stacks')]
    inputs = [*files, CPU_TORCH, *scripts, HERE.parent / 'setup.py', HERE.parent / 'pyproject.toml']
    return f'{hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()} {venv}\n'


def make_venv(base: str, venv: Path) -> Path:
    python = venv / 'bin' / 'python'
    complete = python.exists() and (venv / 'bin' / 'pip').exists()
    if not complete and subprocess.run([base, '-m', 'venv', '--clear', venv]).returncode:
        shutil.rmtree(venv, ignore_errors=True)
        sys.exit('cannot make a virtual environment; on Debian/Ubuntu: apt-get install python3-venv')
    return python


def pip(python: Path, *arguments: str) -> None:
    if run_pip(python, *arguments):
        sys.exit(f'[setup] pip failed, see above. After a network error, {RUN_AGAIN}')


def run_pip(python: Path, *arguments: str) -> int:
    return subprocess.run([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *arguments]).returncode


def install_first(python: Path, pins: dict[str, str], locked: bool) -> None:
    """Install what the build of mmcv needs. From a list without hashes, install all but the toolkits."""
    if locked:
        install_locked_torch(python)
        names = MMCV_BUILD_REQUIREMENTS
    else:
        names = [name for name in pins if not name.startswith(('mm', 'onedl-mm'))]
    path = python.parents[1] / 'build-requirements.txt'
    path.write_text(''.join(pins[name] for name in names))
    pip(python, *(LOCKED if locked else UNLOCKED), '-r', str(path))


def install_locked_torch(python: Path) -> None:
    """Install torch: without a GPU the CPU build if it is available, else PyPI's CUDA build, ten times its size."""
    if sys.platform == 'linux' and not shutil.which('nvidia-smi'):
        if not run_pip(python, *LOCKED, '-r', str(CPU_TORCH), *torch_index()):
            return
        say("cannot install torch's CPU build, see above; installing PyPI's CUDA build instead (several GB)")
    pip(python, *LOCKED, '-r', str(HERE / 'torch.lock'))


def torch_index() -> list[str]:
    index = 'https://download.pytorch.org/whl/cpu'
    try:
        urllib.request.urlopen(index, timeout=5).close()
    except OSError:
        return []
    return ['--extra-index-url', index]


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f'\n[setup] interrupted; {RUN_AGAIN}')

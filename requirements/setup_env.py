"""Make a virtual environment with the pinned stack. ``make setup`` runs it. It needs only Python's standard library.

usage: python3 requirements/setup_env.py VENV STACK
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
MMCV = {'onedl': 'onedl-mmcv', 'openmmlab': 'mmcv'}
CPU_TORCH = HERE / 'torch-cpu.lock'
MMCV_BUILD_REQUIREMENTS = (
    'setuptools', 'wheel', 'ninja', 'psutil', 'packaging', 'numpy',
    'filelock', 'fsspec', 'jinja2', 'markupsafe', 'mpmath', 'networkx', 'sympy', 'typing-extensions')  # torch's
LOCKED = ('--require-hashes', '--no-deps', '--no-build-isolation')
RUN_AGAIN = 'run the same command again; it skips the finished steps.'
ADVICE = f"""\
Detection needs mmcv's compiled operators. To build them here, install a compiler:
  Debian/Ubuntu   apt-get install g++ python3-dev
  Fedora          dnf install gcc-c++ python3-devel
  NVIDIA GPU      the CUDA toolkit (nvcc), in the version that `python -c 'import torch; print(torch.version.cuda)'`
                  prints, with CUDA_HOME set to its folder
Or install a prebuilt wheel: https://mmwheels.onedl.ai has wheels for some Python and CUDA versions.
Then {RUN_AGAIN}"""


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[2] not in MMCV:
        sys.exit(f'usage: make setup [STACK={"|".join(MMCV)}]')
    if sys.version_info[:2] != (3, 11):
        sys.exit(f'the pinned versions are for Python 3.11, this is {sys.version.split()[0]}; run `make setup '
                 'PYTHON=python3.11`, or install mmws into an existing environment (see "Install" in README.md)')
    venv, stack = Path(sys.argv[1]).absolute(), sys.argv[2]
    locks = [HERE / f'{name}.lock' for name in ('torch', 'common', stack)]
    stamp, state = venv / 'mmws-setup', _state(locks, venv)
    if stamp.is_file() and stamp.read_text() == state:
        return
    pins = read_locks(locks)
    started = time.monotonic()
    say(f'setting up {venv} with the {stack} stack ({pins["torch"].split()[0]}, {pins[MMCV[stack]].split()[0]})')
    python = make_venv(venv)
    say('1/4 torch and build tools (download: 0.2 GB, or several GB on a machine with a GPU)')
    install_torch(python)
    (venv / 'build.lock').write_text(''.join(pins[name] for name in MMCV_BUILD_REQUIREMENTS))
    install_locked(python, venv / 'build.lock')
    say('2/4 mmcv with compiled operators')
    wheel = mmcv_wheel(python, pins[MMCV[stack]], venv / 'mmcv-build.log')
    pip(python, '--no-deps', str(wheel))
    say('3/4 the toolkits')
    for lock in locks[1:]:
        install_locked(python, lock)
    check_operators(python)
    say('4/4 mmws')
    pip(python, '--no-deps', '--no-build-isolation', '-e', str(HERE.parent))
    stamp.write_text(state)
    say(f'done in {(time.monotonic() - started) / 60:.1f} min')


def say(text: str) -> None:
    print(f'[setup] {text}', flush=True)


def read_locks(locks: list[Path]) -> dict[str, str]:
    """Return each distribution's entry in the lock files, with its version and hashes in pip's format."""
    entries = re.findall(r'^([\w-]+)(==.*\n(?: .*\n)+)', ''.join(path.read_text() for path in locks), re.M)
    return {name: name + pin for name, pin in entries}


def _state(locks: list[Path], venv: Path) -> str:
    """Return a fingerprint of the environment's inputs: setup runs again when it changes."""
    inputs = [*locks, CPU_TORCH, Path(__file__), HERE.parent / 'setup.py', HERE.parent / 'pyproject.toml']
    digest = hashlib.sha256(b''.join(path.read_bytes() for path in inputs)).hexdigest()
    return f'{digest} {venv} {sys.version.split()[0]}\n'


def make_venv(venv: Path) -> Path:
    python = venv / 'bin' / 'python'
    if not python.exists() and subprocess.run([sys.executable, '-m', 'venv', venv]).returncode:
        shutil.rmtree(venv, ignore_errors=True)
        sys.exit('cannot make a virtual environment; on Debian/Ubuntu: apt-get install python3-venv')
    return python


def pip(python: Path, *arguments: str) -> None:
    if run_pip(python, *arguments):
        sys.exit(f'[setup] pip failed, see above. After a network error, {RUN_AGAIN}')


def run_pip(python: Path, *arguments: str) -> int:
    return subprocess.run([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *arguments]).returncode


def install_locked(python: Path, lock: Path) -> None:
    """Install the distributions in ``lock``. pip refuses a file with another hash."""
    pip(python, *LOCKED, '-r', str(lock))


def install_torch(python: Path) -> None:
    """Install torch: without a GPU the CPU build if it is available, else PyPI's CUDA build, ten times its size."""
    if sys.platform == 'linux' and not shutil.which('nvidia-smi'):
        if not run_pip(python, *LOCKED, '-r', str(CPU_TORCH), *torch_index()):
            return
        say("cannot install torch's CPU build, see above; installing PyPI's CUDA build instead (several GB)")
    install_locked(python, HERE / 'torch.lock')


def torch_index() -> list[str]:
    index = 'https://download.pytorch.org/whl/cpu'
    try:
        urllib.request.urlopen(index, timeout=5).close()
    except OSError:
        return []
    return ['--extra-index-url', index]


def mmcv_wheel(python: Path, locked: str, log: Path) -> Path:
    """Return the mmcv wheel with compiled operators: from this machine's cache, or built now."""
    requirement = locked.split()[0]
    torch = subprocess.run([python, '-c', 'import torch; print(torch.__version__, torch.cuda.is_available())'],
                           capture_output=True, text=True, check=True).stdout.split()
    cache = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'mmws'
    tag = f'cp{sys.version_info.major}{sys.version_info.minor}'
    folder = cache / f'{requirement}-{tag}-torch{torch[0]}-{"cuda" if torch[1] == "True" else "cpu"}'
    if not list(folder.glob('*.whl')):
        build_wheel(python, locked, folder, log)
    wheel = next(folder.glob('*.whl'))
    say(f'using {wheel}')
    return wheel


def build_wheel(python: Path, locked: str, folder: Path, log: Path) -> None:
    requirement, lock = locked.split()[0], log.with_suffix('.lock')
    lock.write_text(locked)
    jobs = str(min(os.cpu_count() or 1, 8))
    say(f'building {requirement}, once on this machine: about 7 minutes on 2 cores, several times longer for CUDA. '
        f'Cache: {folder}. Compiler output: {log}')
    partial = folder.with_name(f'{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    command = [python, '-m', 'pip', 'wheel', '-v', *LOCKED, '--no-cache-dir', '--disable-pip-version-check',
               '-w', partial, '-r', lock]
    environment = {'MAX_JOBS': jobs, **os.environ, 'MMCV_WITH_OPS': '1'}
    with log.open('w') as file, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        show_progress(process.stdout, file)
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
        sys.exit(f'{tail}\n[setup] building {requirement} failed; full output: {log}.\n{ADVICE}')
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def show_progress(output, file) -> None:
    """Copy the compiler's output to ``file``; print ninja's ``[step/steps]`` with an estimate of the time left."""
    started = shown = time.monotonic()
    terminal = sys.stdout.isatty()
    for line in output:
        file.write(line)
        step = re.match(r'\s*\[(\d+)/(\d+)\]', line)
        now = time.monotonic()
        if step and (now - shown > (1 if terminal else 30) or step[1] == step[2]):
            shown, done, steps = now, int(step[1]), int(step[2])
            left = (now - started) / done * (steps - done)
            print(f'[setup] compiling {done}/{steps}, about {left / 60:.1f} min left', end='\r' if terminal else '\n',
                  flush=True)
    if terminal:
        print()


def check_operators(python: Path) -> None:
    check = subprocess.run([python, '-c', 'import mmcv._ext'], capture_output=True, text=True)
    if check.returncode:
        sys.exit(f'{check.stderr}\n[setup] mmcv is installed, but its compiled operators cannot be imported.\n{ADVICE}')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f'\n[setup] interrupted; {RUN_AGAIN}')

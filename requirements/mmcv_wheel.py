"""mmcv with compiled operators: a wheel from this machine's cache, or built now with progress."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

RUN_AGAIN = 'run the same command again; it skips the finished steps.'
ADVICE = f"""\
Detection needs mmcv's compiled operators. To build them here, install a compiler:
  Debian/Ubuntu   apt-get install g++ python3-dev
  Fedora          dnf install gcc-c++ python3-devel
  NVIDIA GPU      the CUDA toolkit (nvcc), in the version that `python -c 'import torch; print(torch.version.cuda)'`
                  prints, with CUDA_HOME set to its folder
Or install a prebuilt wheel: https://mmwheels.onedl.ai has wheels for some Python and CUDA versions.
Then {RUN_AGAIN}"""


def say(text: str) -> None:
    print(f'[setup] {text}', flush=True)


def mmcv_wheel(python: Path, pin: str, options: tuple[str, ...], log: Path) -> Path:
    """Return the wheel for this Python and its torch. ``pin`` is the entry of mmcv, ``options`` are pip's."""
    code = ('import sys, torch; print("cp%d%d-torch%s" % (*sys.version_info[:2], torch.__version__), '
            '"cuda" if torch.cuda.is_available() else "cpu", sep="-")')
    built_for = subprocess.run([python, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
    cache = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'mmws'
    folder = cache / f'{pin.split()[0]}-{built_for}'
    if not list(folder.glob('*.whl')):
        build_wheel(python, pin, options, folder, log)
    wheel = next(folder.glob('*.whl'))
    say(f'using {wheel}')
    return wheel


def build_wheel(python: Path, pin: str, options: tuple[str, ...], folder: Path, log: Path) -> None:
    requirement, requirements = pin.split()[0], log.with_suffix('.txt')
    requirements.write_text(pin)
    jobs = str(min(os.cpu_count() or 1, 8))
    say(f'building {requirement}, once on this machine: about 5 minutes on 2 cores, several times longer for CUDA. '
        f'Cache: {folder}. Compiler output: {log}')
    partial = folder.with_name(f'{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    command = [python, '-m', 'pip', 'wheel', '-v', *options, '--no-build-isolation', '--no-cache-dir',
               '--disable-pip-version-check', '-w', partial, '-r', requirements]
    # Debug information, which distributions of Python ask for, would double the time.
    environment = {'MAX_JOBS': jobs, 'CFLAGS': '-g0', **os.environ, 'MMCV_WITH_OPS': '1'}
    if needs_cxx20(python):
        environment['CXX'] = str(compiler_for_cxx20(log.with_name('mmcv-c++20')))
    with log.open('w') as file, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        show_progress(process.stdout, file)
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
        sys.exit(f'{tail}\n[setup] building {requirement} failed; full output: {log}.\n{ADVICE}')
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def needs_cxx20(python: Path) -> bool:
    """Return whether torch's headers need C++20 (torch 2.15): mmcv's setup asks for C++17."""
    code = ('import pathlib, torch; header = pathlib.Path(torch.__file__).parent / "include/ATen/ATen.h"; '
            'print("C++20 or later" in header.read_text())')
    return subprocess.run([python, '-c', code], capture_output=True, text=True).stdout.strip() == 'True'


def compiler_for_cxx20(script: Path) -> Path:
    """Write a script that runs the C++ compiler with C++20, whatever standard its arguments ask for."""
    script.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -std=c++20\n')
    script.chmod(0o755)
    return script


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

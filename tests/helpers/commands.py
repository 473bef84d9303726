"""Run the tools as a user does, in this process or in a new one."""

from __future__ import annotations

import hashlib
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

REPOSITORY = Path(__file__).parents[2]


def tracked_files() -> list[str]:
    """Return the files that git tracks, and the new ones that it does not ignore."""
    return subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=REPOSITORY, check=True,
                          capture_output=True, text=True).stdout.split()


def run_tool(name: str, *arguments: str) -> None:
    """Run a tool in this process."""
    with patch.object(sys, 'argv', [name, *arguments]):
        runpy.run_path(str(REPOSITORY / 'tools' / name), run_name='__main__')


def tool_error(name: str, *arguments: str) -> str:
    """Return the line that a tool exits with. Python prints it to stderr and sets the exit code 1."""
    with pytest.raises(SystemExit) as error:
        run_tool(name, *arguments)
    assert isinstance(error.value.code, str)
    assert '\n' not in error.value.code
    return error.value.code


def contents(folder: Path) -> dict[str, str]:
    """Return the paths in a folder, with the hash of each file."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
            for path in sorted(folder.rglob('*'))}


def refusal(name: str, *arguments: str) -> str:
    """Return the error of a tool, and assert that it changed nothing in the current folder."""
    before = contents(Path())
    message = tool_error(name, *arguments)
    assert message.startswith('error: ')
    assert contents(Path()) == before
    return message[len('error: '):]


def run(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def tool(name: str, *arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    return run(sys.executable, str(REPOSITORY / 'tools' / name), *arguments, folder=folder, **variables)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]

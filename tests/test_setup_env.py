import hashlib
import importlib.util
import io
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import REPOSITORY

LISTS = REPOSITORY / 'requirements'
spec = importlib.util.spec_from_file_location('setup_env', LISTS / 'setup_env.py')
setup_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_env)


def test_build_shows_progress_and_logs_its_output(capsys):
    log = io.StringIO()
    setup_env.show_progress(['cc1plus: warning\n', '  [1/2] c++ a.cpp\n', '  [2/2] c++ b.cpp\n'], log)
    assert log.getvalue().count('\n') == 3
    assert '[setup] compiling 2/2, about 0.0 min left' in capsys.readouterr().out


def test_failed_build_advises_and_leaves_no_wheel(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "error: command g++ failed"\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r'(?s)command g\+\+ failed.*building mmcv==0 failed.*apt-get install g\+\+'):
        setup_env.build_wheel(python, 'mmcv==0 \\\n    --hash=sha256:0\n', tmp_path / 'cache', tmp_path / 'log')
    assert not (tmp_path / 'cache').exists()


def test_missing_operators_are_explained(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "No module named mmcv._ext" >&2\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r'(?s)No module named mmcv\._ext.*cannot be imported.*apt-get install'):
        setup_env.check_operators(python)


@pytest.mark.parametrize('version', [(3, 8, 0), (3, 12, 0)])
def test_unknown_stack_and_other_python_versions_are_refused(version, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['setup_env.py', str(tmp_path / 'venv'), 'openmm'])
    with pytest.raises(SystemExit, match=r'usage: make setup \[STACK=onedl\|openmmlab\]'):
        setup_env.main()
    monkeypatch.setattr(sys, 'argv', ['setup_env.py', str(tmp_path / 'venv'), 'onedl'])
    monkeypatch.setattr(sys, 'version_info', version)
    with pytest.raises(SystemExit, match=r'are for Python 3\.11, this is'):
        setup_env.main()
    assert not (tmp_path / 'venv').exists()


def test_unchanged_inputs_skip_setup(monkeypatch, tmp_path, capsys):
    venv = tmp_path / 'venv'
    venv.mkdir()
    locks = [LISTS / f'{name}.lock' for name in ('torch', 'common', 'onedl')]
    (venv / 'mmws-setup').write_text(setup_env._state(locks, venv))
    monkeypatch.setattr(sys, 'argv', ['setup_env.py', str(venv), 'onedl'])
    monkeypatch.setattr(sys, 'version_info', (3, 11, 0))
    setup_env.main()
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('name', ['audit', 'common', 'onedl', 'openmmlab', 'torch'])
def test_locks_match_the_lists(name):
    listed = set(re.findall(r'^[\w-]+==\S+', (LISTS / f'{name}.txt').read_text(), re.M))
    locked = {entry.split()[0] for entry in setup_env.read_locks([LISTS / f'{name}.lock']).values()}
    assert listed
    assert listed <= locked if name == 'audit' else listed == locked


@pytest.fixture
def locked(tmp_path, monkeypatch) -> str:
    """Return the lock entry of a source distribution; pip finds no other distribution."""
    source = tmp_path / 'locked-1.0'
    source.mkdir()
    (source / 'setup.py').write_text("from setuptools import setup\nsetup(name='locked', version='1.0')\n")
    archive = Path(shutil.make_archive(str(source), 'gztar', tmp_path, source.name))
    for option, value in {'NO_INDEX': '1', 'FIND_LINKS': tmp_path, 'TARGET': tmp_path / 'installed'}.items():
        monkeypatch.setenv(f'PIP_{option}', str(value))
    return f'locked==1.0 \\\n    --hash=sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}\n'


def test_locked_distribution_installs_and_builds(locked, tmp_path):
    (tmp_path / 'lock').write_text(locked)
    setup_env.install_locked(Path(sys.executable), tmp_path / 'lock')
    setup_env.build_wheel(Path(sys.executable), locked, tmp_path / 'cache', tmp_path / 'log')
    assert [path.name for path in (tmp_path / 'installed').iterdir()] == ['locked-1.0.dist-info']
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['locked-1.0-py3-none-any.whl']


def test_file_with_another_hash_is_refused(locked, tmp_path, capfd):
    (tmp_path / 'lock').write_text(locked)
    with (tmp_path / 'locked-1.0.tar.gz').open('ab') as archive:
        archive.write(b'0')
    with pytest.raises(SystemExit, match='pip failed'):
        setup_env.install_locked(Path(sys.executable), tmp_path / 'lock')
    assert 'THESE PACKAGES DO NOT MATCH THE HASHES' in capfd.readouterr().err
    with pytest.raises(SystemExit, match=r'(?s)DO NOT MATCH THE HASHES.*building locked==1\.0 failed'):
        setup_env.build_wheel(Path(sys.executable), locked, tmp_path / 'cache', tmp_path / 'log')
    assert not (tmp_path / 'installed').exists()
    assert not (tmp_path / 'cache').exists()


def test_entry_without_a_hash_is_refused(locked, tmp_path, capfd):
    (tmp_path / 'lock').write_text('locked==1.0\n')
    with pytest.raises(SystemExit, match='pip failed'):
        setup_env.install_locked(Path(sys.executable), tmp_path / 'lock')
    assert 'Hashes are required' in capfd.readouterr().err

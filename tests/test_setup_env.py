import hashlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mmcv_wheel
import pytest
import setup_env
import stacks
from packaging.version import Version

from tests.helpers.commands import REPOSITORY

LISTS = REPOSITORY / 'requirements'


def fake_python(folder: Path, script: str, name: str = 'python') -> Path:
    python = folder / name
    python.write_text(f'#!/bin/sh\n{script}\n')
    python.chmod(0o755)
    return python


def test_build_shows_progress_and_logs_its_output(capsys):
    log = io.StringIO()
    mmcv_wheel.show_progress(['cc1plus: warning\n', '  [1/2] c++ a.cpp\n', '  [2/2] c++ b.cpp\n'], log)
    assert log.getvalue().count('\n') == 3
    assert '[setup] compiling 2/2, about 0.0 min left' in capsys.readouterr().out


def test_failed_build_advises_and_leaves_no_wheel(tmp_path):
    python = fake_python(tmp_path, 'echo "error: command g++ failed"; exit 1')
    with pytest.raises(SystemExit, match=r'(?s)command g\+\+ failed.*building mmcv==0 failed.*apt-get install g\+\+'):
        mmcv_wheel.build_wheel(python, 'mmcv==0\n', (), tmp_path / 'cache', tmp_path / 'log')
    assert not (tmp_path / 'cache').exists()


def test_missing_operators_are_explained(tmp_path):
    python = fake_python(tmp_path, 'echo "No module named mmcv._ext" >&2; exit 1')
    with pytest.raises(SystemExit, match=r'(?s)No module named mmcv\._ext.*cannot be imported.*apt-get install'):
        mmcv_wheel.check_operators(python)


def test_the_wheel_is_kept_for_its_python_and_its_torch(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    python = fake_python(tmp_path, 'echo cp38-torch2.0.1-cpu')
    wheel = tmp_path / 'mmws' / 'mmcv==2.1.0-cp38-torch2.0.1-cpu' / 'mmcv.whl'
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    assert mmcv_wheel.mmcv_wheel(python, 'mmcv==2.1.0\n', (), tmp_path / 'log') == wheel


def test_unknown_stack_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['setup_env.py', str(tmp_path / 'venv'), 'openmm'])
    with pytest.raises(SystemExit, match=r'STACK=onedl\|openmmlab\|guide\|prebuilt\|oldest\|newest]'):
        setup_env.main()


def test_the_python_of_a_stack_is_found_or_named(monkeypatch, tmp_path):
    running = '{}.{}'.format(*sys.version_info)
    assert stacks.find_python(running) == sys.executable
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('PATH', str(tmp_path))
    python = fake_python(tmp_path, 'echo 3.99', 'python3.99')
    assert stacks.find_python('3.99') == str(python)
    fake_python(tmp_path, 'echo pyenv: command not found >&2; exit 127', 'python3.99')
    with pytest.raises(SystemExit, match=r'^Python 3\.99 not found on PATH .*`pyenv install 3\.99`[^\n]*$'):
        stacks.find_python('3.99')
    of_pyenv = tmp_path / 'home' / '.pyenv' / 'versions' / '3.99.1' / 'bin'
    of_pyenv.mkdir(parents=True)
    python = fake_python(of_pyenv, 'echo 3.99')
    assert stacks.find_python('3.99') == str(python)


def test_a_missing_python_leaves_no_environment(monkeypatch, tmp_path):
    monkeypatch.setitem(stacks.STACKS, 'guide', stacks.Stack('3.99', 'mmcv'))
    with pytest.raises(SystemExit, match=r'Python 3\.99 not found'):
        setup_env.set_up(tmp_path / 'venv', 'guide')
    assert not (tmp_path / 'venv').exists()


@pytest.mark.parametrize('name', stacks.STACKS)
def test_unchanged_inputs_skip_setup(name, tmp_path, capsys):
    venv = tmp_path / 'venv'
    venv.mkdir()
    (venv / 'mmws-setup').write_text(setup_env._state(stacks.pin_files(name), venv))
    setup_env.set_up(venv, name)
    assert capsys.readouterr().out == ''


def test_other_pins_set_up_again(tmp_path):
    states = {setup_env._state(stacks.pin_files(name), tmp_path) for name in stacks.STACKS}
    assert len(states) == len(stacks.STACKS)


@pytest.mark.parametrize('name', stacks.STACKS)
def test_the_pins_of_a_stack_suffice(name):
    pins = stacks.read_pins(stacks.pin_files(name))
    versions = {name: Version(re.split('==|[ ;\n]', pin)[1]) for name, pin in pins.items()}
    assert {stacks.STACKS[name].mmcv, *setup_env.MMCV_BUILD_REQUIREMENTS} <= versions.keys()
    assert {'torch', 'pytest', 'hypothesis'} <= versions.keys()
    assert versions['setuptools'] >= Version('64')  # of pyproject.toml, for an editable installation


def test_an_incomplete_environment_is_made_again(tmp_path):
    python = setup_env.make_venv(sys.executable, tmp_path / 'venv')
    (python.parent / 'pip').unlink()
    (tmp_path / 'venv' / 'rest').touch()
    setup_env.make_venv(sys.executable, tmp_path / 'venv')
    assert (python.parent / 'pip').exists()
    assert not (tmp_path / 'venv' / 'rest').exists()


@pytest.mark.parametrize('name', ['audit', 'common', 'onedl', 'openmmlab', 'torch'])
def test_locks_match_the_lists(name):
    listed = set(re.findall(r'^[\w-]+==\S+', (LISTS / f'{name}.txt').read_text(), re.M))
    locked = {entry.split()[0] for entry in stacks.read_pins([LISTS / f'{name}.lock']).values()}
    assert listed
    assert listed <= locked if name == 'audit' else listed == locked


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """Return a source distribution; pip finds no other distribution."""
    folder = tmp_path / 'locked-1.0'
    folder.mkdir()
    (folder / 'setup.py').write_text("from setuptools import setup\nsetup(name='locked', version='1.0')\n")
    for option, value in {'NO_INDEX': '1', 'FIND_LINKS': tmp_path, 'TARGET': tmp_path / 'installed'}.items():
        monkeypatch.setenv(f'PIP_{option}', str(value))
    return Path(shutil.make_archive(str(folder), 'gztar', tmp_path, folder.name))


@pytest.fixture
def locked(source) -> str:
    """Return the lock entry of the source distribution."""
    return f'locked==1.0 \\\n    --hash=sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}\n'


def install(pin: str, folder: Path) -> None:
    (folder / 'lock').write_text(pin)
    setup_env.pip(Path(sys.executable), *setup_env.LOCKED, '-r', str(folder / 'lock'))


def build(pin: str, options: tuple, folder: Path) -> None:
    mmcv_wheel.build_wheel(Path(sys.executable), pin, options, folder / 'cache', folder / 'log')


@pytest.mark.parametrize('options', [setup_env.LOCKED, setup_env.UNLOCKED])
def test_locked_and_unlocked_distributions_build(options, locked, tmp_path):
    build(locked if options == setup_env.LOCKED else 'locked==1.0\n', options, tmp_path)
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['locked-1.0-py3-none-any.whl']


def test_locked_distribution_installs(locked, tmp_path):
    install(locked, tmp_path)
    assert [path.name for path in (tmp_path / 'installed').iterdir()] == ['locked-1.0.dist-info']


def test_file_with_another_hash_is_refused(locked, source, tmp_path, capfd):
    with source.open('ab') as archive:
        archive.write(b'0')
    with pytest.raises(SystemExit, match='pip failed'):
        install(locked, tmp_path)
    assert 'THESE PACKAGES DO NOT MATCH THE HASHES' in capfd.readouterr().err
    with pytest.raises(SystemExit, match=r'(?s)DO NOT MATCH THE HASHES.*building locked==1\.0 failed'):
        build(locked, setup_env.LOCKED, tmp_path)
    assert not (tmp_path / 'installed').exists()
    assert not (tmp_path / 'cache').exists()


def test_entry_without_a_hash_is_refused(locked, tmp_path, capfd):
    with pytest.raises(SystemExit, match='pip failed'):
        install('locked==1.0\n', tmp_path)
    assert 'Hashes are required' in capfd.readouterr().err


def test_setup_and_the_matrix_need_only_the_standard_library():
    code = 'import sys; sys.path.append(sys.argv[1]); import matrix; print(matrix.setup_env.CPU_TORCH)'
    run = subprocess.run([sys.executable, '-S', '-I', '-c', code, str(LISTS)], capture_output=True, text=True)
    assert run.stdout == f'{LISTS / "torch-cpu.lock"}\n', run.stderr

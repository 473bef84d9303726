import importlib.util
import io
import sys

import pytest
from conftest import REPOSITORY

spec = importlib.util.spec_from_file_location('setup_env', REPOSITORY / 'requirements' / 'setup_env.py')
setup_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_env)


def test_progress_of_the_build_is_shown_and_its_output_kept(capsys):
    log = io.StringIO()
    setup_env.show_progress(['cc1plus: warning\n', '  [1/2] c++ a.cpp\n', '  [2/2] c++ b.cpp\n'], log)
    assert log.getvalue().count('\n') == 3
    assert '[setup] compiling 2/2, about 0.0 min left' in capsys.readouterr().out


def test_a_failed_build_says_what_to_install_and_leaves_no_wheel(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "error: command g++ failed"\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r'(?s)command g\+\+ failed.*building mmcv==0 failed.*apt-get install g\+\+'):
        setup_env.build_wheel(python, 'mmcv==0', tmp_path / 'kept', tmp_path / 'log')
    assert not (tmp_path / 'kept').exists()


def test_operators_that_cannot_be_imported_are_explained(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "No module named mmcv._ext" >&2\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r'(?s)No module named mmcv\._ext.*cannot be imported.*apt-get install'):
        setup_env.check_operators(python)


def test_a_wrong_stack_and_an_old_python_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['setup_env.py', str(tmp_path / 'venv'), 'openmm'])
    with pytest.raises(SystemExit, match=r'usage: make setup \[STACK=onedl\|openmmlab\]'):
        setup_env.main()
    monkeypatch.setattr(sys, 'argv', ['setup_env.py', str(tmp_path / 'venv'), 'onedl'])
    monkeypatch.setattr(sys, 'version_info', (3, 8, 0))
    with pytest.raises(SystemExit, match=r'need Python 3\.11 or newer'):
        setup_env.main()
    assert not (tmp_path / 'venv').exists()


def test_nothing_is_done_when_nothing_changed(monkeypatch, tmp_path, capsys):
    venv = tmp_path / 'venv'
    venv.mkdir()
    lists = [REPOSITORY / 'requirements' / f'{name}.txt' for name in ('onedl', 'common')]
    (venv / 'mmws-setup').write_text(setup_env._state(lists, venv))
    monkeypatch.setattr(sys, 'argv', ['setup_env.py', str(venv), 'onedl'])
    setup_env.main()
    assert capsys.readouterr().out == ''

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import torch

import mmws
from mmws import env
from tests.helpers.commands import REPOSITORY


def test_the_module_prints_versions_operators_features_and_variables(monkeypatch):
    monkeypatch.setenv('MMWS_CHECKPOINTS', '/weights')
    result = subprocess.run(
        [sys.executable, '-m', 'mmws.env'], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = dict(line.split(': ', 1) for line in result.stdout.splitlines())
    assert lines == env.describe_environment()
    assert lines['mmws'] == mmws.__version__
    assert lines['folder of mmws'] == str(REPOSITORY / 'mmws')
    assert lines['opencv'].startswith('opencv-')
    assert lines['torch'].startswith(torch.__version__)
    assert 'mmengine' in lines['mmengine']
    assert lines["mmcv's compiled operators"] == 'yes'
    assert lines['MMWS_CHECKPOINTS'] == '/weights'
    assert lines['MMWS_SHA256'] == 'not set'


def program(folder, name, code):
    path = folder / name
    path.write_text(f'#!/bin/sh\n{code}\n')
    path.chmod(0o755)
    return path


def test_the_compiler_and_ninja_are_those_that_torch_finds(monkeypatch, tmp_path):
    compiler, ninja = program(tmp_path, 'mycc', 'echo mycc 1.2; echo more'), program(tmp_path, 'ninja', 'echo 1.11')
    monkeypatch.setattr(env.sysconfig, 'get_path', lambda name: str(tmp_path))
    monkeypatch.setenv('CXX', 'mycc')
    report = env.describe_environment()
    assert report['C++ compiler'] == f'{compiler}, mycc 1.2'
    assert report['ninja'] == f'{ninja}, 1.11'
    ninja.write_text('not a program')
    monkeypatch.setenv('CXX', 'no-such-compiler')
    report = env.describe_environment()
    assert report['C++ compiler'] == 'no-such-compiler not found'
    assert report['ninja'].startswith(f'{ninja}: OSError: ')


def test_missing_packages_and_features_are_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    def no_operators(name):
        raise ImportError('undefined symbol\nin _ext')

    monkeypatch.setattr(env, 'version', missing)
    monkeypatch.setattr(env, 'import_module', no_operators)
    monkeypatch.setitem(env.FEATURES, 'export to ONNX', False)
    report = env.describe_environment()
    assert report['mmdet'] == 'not installed'
    assert report["mmcv's compiled operators"] == 'no: ImportError: undefined symbol in _ext'
    assert report['export to ONNX'] == f'not with torch {torch.__version__}'

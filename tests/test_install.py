"""Installing changes no other distribution; an unsupported version or an incomplete mmcv is one line."""

import json
import re
import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mmcv
import pytest
import stacks
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from mmws.version import MINIMUM_TORCH
from tests.helpers.commands import REPOSITORY, run

NO_OPERATORS = 'mmcv has no compiled operators for this torch ('


@pytest.fixture(scope='module')
def metadata(wheel):
    """Return the metadata of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        return message_from_bytes(archive.read(name))


@pytest.fixture(scope='module')
def requirements(metadata):
    """Return the requirements, those of the extras too."""
    return [Requirement(text) for text in metadata.get_all('Requires-Dist')]


def lower_bound(specifiers: SpecifierSet) -> str:
    return next((each.version for each in specifiers if each.operator == '>='), '')


def test_pip_installs_nothing_else(wheel, tmp_path):
    report = run(sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--dry-run', '--no-index',
                 '--report', 'report.json', str(wheel), folder=tmp_path)
    assert report.returncode == 0, report.stderr
    installs = json.loads((tmp_path / 'report.json').read_text())['install']
    assert {each['metadata']['name'] for each in installs} <= {'mmws'}


def test_what_is_installed_satisfies_the_extras_too(requirements):
    installed = {}
    for requirement in requirements:
        try:
            installed[requirement] = version(requirement.name)
        except PackageNotFoundError:
            continue
    assert len(installed) > 10
    assert not [str(requirement) for requirement, number in installed.items() if number not in requirement.specifier]


def test_lower_bounds_are_the_oldest_versions_that_are_tested(metadata, requirements):
    pins = [stacks.read_pins(stacks.pin_files(name)) for name in stacks.STACKS]
    tested = {requirement.name: [Version(re.split('==|[ ;\n]', pin[requirement.name])[1])
                                 for pin in pins if requirement.name in pin] for requirement in requirements}
    bounds = {requirement.name: Version(bound) for requirement in requirements
              for bound in [lower_bound(requirement.specifier)] if bound}
    assert {'torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'onedl-mmengine', 'onedl-mmcv'} <= bounds.keys()
    assert bounds == {name: min(tested[name]) for name in bounds}
    assert Version(MINIMUM_TORCH) == bounds['torch']


def test_the_lowest_python_is_tested(metadata):
    lowest = min((stack.python for stack in stacks.STACKS.values()), key=Version)
    assert metadata['Requires-Python'] == f'>={lowest}'


def test_setup_refuses_an_older_python(metadata):
    code = 'import runpy, sys; sys.version_info = (3, 7, 16, "final", 0); runpy.run_path(sys.argv.pop(1))'
    result = run(sys.executable, '-c', code, str(REPOSITORY / 'setup.py'), '--version', folder=REPOSITORY)
    assert result.returncode == 1
    needed = re.fullmatch(r'mmws needs Python (\S+) (\S+), this is .*\n', result.stderr)
    assert ''.join(needed.groups()) == metadata['Requires-Python']


@pytest.fixture
def old_torch(tmp_path) -> str:
    """Return a folder for PYTHONPATH with a torch that has a version and nothing else."""
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text("__version__ = '1.13.1+cu117'\n")
    return str(tmp_path)


@pytest.mark.parametrize('module', ['mmws', 'mmws.registry', 'mmws.layers.conv'])
def test_an_old_torch_is_one_line_at_import(module, old_torch, tmp_path):
    result = run(sys.executable, '-c', f'import {module}', folder=tmp_path, PYTHONPATH=old_torch)
    assert re.match(r'mmws\.errors\.WSError: mmws \S+ needs torch >= \S+, this is 1\.13\.1\+cu117$',
                    result.stderr.splitlines()[-1])


@pytest.mark.parametrize('name', ['train.py', 'convert_checkpoint.py', 'study.py'])
def test_an_old_torch_is_one_line_of_a_tool(name, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text("import torch\ntorch.__version__ = '1.13.1+cu117'\n")
    result = run(sys.executable, str(REPOSITORY / 'tools' / name), folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert re.fullmatch(r'error: .* needs torch >= .*, this is 1\.13.*\(see Install in README\.md\)\n', result.stderr)


@pytest.fixture
def mmcv_without_operators(tmp_path) -> Path:
    """Return a folder with the installed mmcv, but for its compiled module."""
    folder = tmp_path / 'lite' / 'mmcv'
    folder.mkdir(parents=True)
    for path in Path(mmcv.__file__).parent.iterdir():
        if not path.name.startswith('_ext.'):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(('name', 'reason'), [('train.py', "No module named 'mmcv._ext'"), ('report.py', '_ext.so: ')])
def test_a_detector_without_operators_is_one_line(name, reason, digits, tmp_path, mmcv_without_operators):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{REPOSITORY}/configs/demo/mask_rcnn_r18_gnws_digits.py'\n"
                      f"train_dataloader = dict(dataset=dict(data_root='{digits}/'))\n"
                      f"val_dataloader = dict(dataset=dict(data_root='{digits}/'))\n"
                      f"val_evaluator = dict(ann_file='{digits}/annotations/val.json')\n")
    if '.so' in reason:  # for example compiled for another torch
        (mmcv_without_operators / '_ext.so').write_text('broken')
    result = run(sys.executable, str(REPOSITORY / 'tools' / name), 'config.py', folder=tmp_path,
                 PYTHONPATH=str(mmcv_without_operators.parent))
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert NO_OPERATORS in errors[0]
    assert reason in errors[0]
    assert 'Traceback' not in result.stderr


def test_what_works_without_operators_works(mmcv_without_operators, tmp_path):
    code = '''
from mmengine.registry import MODELS, init_default_scope
import mmws
init_default_scope('mmpretrain')
net = MODELS.build(dict(type='mmws.ResNet', depth=18))
net.eval()
print(type(mmws.fold(net)).__name__)
try:
    MODELS.build(dict(type='mmws.mmdet.ResNet', depth=18))
except mmws.WSError as error:
    print(error)
'''
    result = run(sys.executable, '-c', code, folder=tmp_path, PYTHONPATH=str(mmcv_without_operators.parent))
    assert result.returncode == 0, result.stderr
    assert 'ResNet\n' in result.stdout
    assert NO_OPERATORS in result.stdout.splitlines()[-1]

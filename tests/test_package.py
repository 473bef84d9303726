import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
import zipfile
from types import ModuleType
from unittest.mock import patch

import pytest
import yaml

import mmws
from tests.helpers.commands import REPOSITORY, tracked_files

MODULES = ['mmws', *(module.name for module in pkgutil.walk_packages(mmws.__path__, 'mmws.'))]


@pytest.mark.parametrize('name', MODULES)
def test_all_lists_the_public_names(name):
    module = importlib.import_module(name)
    own = {key for key, value in vars(module).items() if not key.startswith('_') and not isinstance(value, ModuleType)
           and getattr(value, '__module__', '').startswith('mmws')}
    if name == 'mmws':
        assert own | {'__version__'} == set(module.__all__)
    else:
        assert set(getattr(module, '__all__', ())) <= set(vars(module))


def test_layers_and_conversion_need_only_torch():
    code = '''
import sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'rich', 'matplotlib', 'cv2', 'sklearn', 'pycocotools'):
    sys.modules[name] = None
import mmws
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
assert mmws.convert_(net).converted == ['0']
'''
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_changelog_and_version_agree():
    latest = re.search(r'^## (\S+)', (REPOSITORY / 'CHANGELOG.md').read_text(), re.M)
    assert latest[1] == mmws.__version__


def test_wheel_has_configs_and_tools_in_openmmlabs_folders(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = tracked_files()
    carried = {name for name in tracked if name.startswith(('configs/', 'tools/', 'model-index.yml'))}
    inherited = {f'mmws/{name}' for name in carried if name.startswith('configs/') and name.endswith('.py')}
    own = {name for name in tracked if name.startswith('mmws/') and not name.startswith('mmws/experiments/')}
    assert len(inherited) > 15
    assert {name for name in packed if '.dist-info/' not in name} == own | inherited | {
        f'mmws/.mim/{name}' for name in carried}


def test_the_contributing_page_names_files_that_exist():
    page = (REPOSITORY / 'docs' / 'contributing.md').read_text()
    named = set(re.findall(r'`((?:mmws|tests|docs|configs|tools)/[\w./]*[\w/])`', page))
    assert len(named) > 15
    assert not [name for name in named if not (REPOSITORY / name).exists()]


def test_the_page_of_journeys_names_tests_that_exist():
    named = re.findall(r'`([\w/]+\.py)::(test_\w+)`', (REPOSITORY / 'docs' / 'journeys.md').read_text())
    assert len(named) > 50
    assert not [name for path, name in named if f'def {name}(' not in (REPOSITORY / 'tests' / path).read_text()]


def test_an_installation_replaces_the_links_of_a_checkout_that_moved(tmp_path):
    with patch('setuptools.setup'):
        link = runpy.run_path(str(REPOSITORY / 'setup.py'))['link']
    for name in ('old', 'new'):
        (tmp_path / name).mkdir()
    (tmp_path / '.mim').mkdir()
    dangling, other = tmp_path / '.mim' / 'configs', tmp_path / '.mim' / 'tools'
    dangling.symlink_to(tmp_path / 'gone')
    other.symlink_to(tmp_path / 'old')
    for target in (dangling, other):
        link(tmp_path / 'new', target)
        assert target.resolve() == tmp_path / 'new'


def test_the_citation_has_the_version():
    citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())
    assert citation['version'] == mmws.__version__
    assert any(reference['url'].endswith('1903.10520') for reference in citation['references'])


@pytest.mark.parametrize(('tag', 'code'), [(f'v{mmws.__version__}', 0), ('v9.9.9', 1)])
def test_the_release_compares_its_tag_with_the_version(tag, code):
    jobs = yaml.safe_load((REPOSITORY / '.github' / 'workflows' / 'release.yml').read_text())['jobs']
    check = next(step['run'] for step in jobs['build']['steps'] if step.get('name') == 'The tag is the version')
    run = subprocess.run(['bash', '-c', check], cwd=REPOSITORY, env={'PATH': '/usr/bin:/bin', 'GITHUB_REF_NAME': tag})
    assert run.returncode == code  # no Python with torch on this PATH is needed


@pytest.mark.parametrize('path', sorted((REPOSITORY / '.github').rglob('*.yml')), ids=lambda path: path.name)
def test_the_files_for_github_are_yaml_and_ask_for_the_environment(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == 'ISSUE_TEMPLATE':
        assert any(field['id'] == 'environment' for field in content['body'])
    else:
        assert content['jobs']

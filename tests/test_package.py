import importlib
import pkgutil
import re
import subprocess
import sys
import zipfile
from types import ModuleType

import pytest
from conftest import REPOSITORY

import mmws

MODULES = ['mmws', *(module.name for module in pkgutil.walk_packages(mmws.__path__, 'mmws.'))]


@pytest.mark.parametrize('name', MODULES)
def test_all_is_what_is_public(name):
    module = importlib.import_module(name)
    own = {key for key, value in vars(module).items() if not key.startswith('_') and not isinstance(value, ModuleType)
           and getattr(value, '__module__', '').startswith('mmws')}
    if name == 'mmws':
        assert own | {'__version__'} == set(module.__all__)
    else:
        assert set(getattr(module, '__all__', ())) <= set(vars(module))


def test_layers_and_conversion_need_torch_alone():
    code = '''
import sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'rich', 'matplotlib', 'cv2', 'sklearn', 'pycocotools'):
    sys.modules[name] = None
import mmws
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
assert mmws.convert_(net).converted == ['0']
'''
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_changelog_is_at_the_version():
    latest = re.search(r'^## (\S+)', (REPOSITORY / 'CHANGELOG.md').read_text(), re.M)
    assert latest[1] == mmws.__version__


def test_the_wheel_carries_configs_and_tools_where_openmmlab_looks(tmp_path):
    tracked = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=REPOSITORY, check=True,
                             capture_output=True, text=True).stdout.split()
    for name in tracked:  # a copy: setuptools packs whatever an earlier build left in build/
        copy = tmp_path / 'source' / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w',
                    str(tmp_path), str(tmp_path / 'source')], check=True)
    (wheel,) = tmp_path.glob('mmws-*.whl')
    packed = set(zipfile.ZipFile(wheel).namelist())
    carried = {name for name in tracked if name.startswith(('configs/', 'tools/'))}
    assert carried
    assert {f'mmws/.mim/{name}' for name in carried} == {name for name in packed if name.startswith('mmws/.mim/')}
    assert {name for name in tracked if name.startswith('mmws/')} == {
        name for name in packed if name.startswith('mmws/') and '/.mim/' not in name}
    assert not any(name.startswith('tests') for name in packed)

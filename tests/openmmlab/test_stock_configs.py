"""Inheritance in another project, with the built wheel installed next to the toolkits."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmws import WSError, stock_config
from tests.helpers.versions import needs_package

NEW_STYLE = '''
from mmengine.config import read_base

with read_base():
    from mmws.configs.mask_rcnn_r50_gnws import *

model.update(dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3))))
'''
LEGACY = '''
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(type='mmws.MaskRCNN', roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))
'''
SEGMENTATION = '''
_base_ = __import__('mmws').stock_config('mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512.py')
model = dict(type='mmws.EncoderDecoder')
'''
OWN = '''
_base_ = __import__('mmws').stock_config('mmws::mask_rcnn_r50_gnws.py')
model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))
'''
BUILD = '''
import sys
import mmws
assert mmws.__file__.startswith(sys.argv[2]), mmws.__file__
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
config = Config.fromfile(sys.argv[1])
config.dump('dumped.py')
config = Config.fromfile('dumped.py')
assert 'import_module' not in config and 'read_mmws_config' not in config
init_default_scope(config.default_scope)
model = MODELS.build(config.model)
print(type(model).__name__, sum(isinstance(module, mmws.ConvWS2d) for module in model.modules()))
'''


@pytest.fixture(scope='session')
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('installed')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(folder), str(wheel)],
                   check=True)
    return folder


@pytest.mark.parametrize(('text', 'built'), [
    pytest.param(NEW_STYLE, 'MaskRCNN 69', marks=needs_package('mmengine', '0.8', 'read_base')),
    (LEGACY, 'MaskRCNN 53'), (OWN, 'MaskRCNN 69'), (SEGMENTATION, 'EncoderDecoder 62')])
def test_another_project_inherits(text, built, installed, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    result = subprocess.run([sys.executable, '-c', BUILD, 'config.py', str(installed)], cwd=tmp_path, text=True,
                            capture_output=True, env={'PYTHONPATH': str(installed)})
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == built


def test_messages_about_missing_stock_configs():
    with pytest.raises(WSError, match=r"has no deeplabv3/deeplabv3_r50\.py: did you mean"):
        stock_config('mmseg::deeplabv3/deeplabv3_r50.py')
    with pytest.raises(WSError, match='mmnothing is not installed; the toolkits are mmdet, mmseg, mmpretrain'):
        stock_config('mmnothing::x.py')

"""Whole models pickled before the modules moved into packages.

``helpers/files/mmws_0.1_models.pt`` holds an image, small models (GN, SN, BCN, EstBN, a convolution of mmcv, a ResNet
of the registry) and their outputs on the image.
"""

import subprocess
import sys

import pytest
import torch

from tests.helpers.commands import REPOSITORY

FILE = REPOSITORY / 'tests' / 'helpers' / 'files' / 'mmws_0.1_models.pt'
LOAD = f"""
import torch
saved = torch.load({str(FILE)!r}, weights_only=False)
for name, model in saved['models'].items():
    output = model(saved['image'])
    output = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(output, saved['outputs'][name], msg=name)
    print(name, type(model[0] if name != 'ResNet' else model.conv1).__name__)
"""


def test_models_pickled_before_the_move_load_and_compute_the_same():
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', LOAD], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split('\n')[:6] == [
        'GN ConvWS2d', 'SN ConvWS2d', 'BCN ConvWS2d', 'EstBN ConvWS2d', 'Conv2dAdaptivePadding Conv2dAdaptivePaddingWS',
        'ResNet ConvWS2d']


def test_an_old_name_is_the_new_module():
    import mmws.conv

    import mmws.layers.conv

    assert mmws.conv is mmws.layers.conv
    with pytest.raises(ModuleNotFoundError):
        import mmws.no_such_module
    assert torch.nn.Conv2d in mmws.conv.ConvWS2d.__mro__

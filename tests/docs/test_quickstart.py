"""The configs of the quick start train on data in the form that it describes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.commands import REPOSITORY, tool

PAGE = (REPOSITORY / 'docs' / 'quickstart.md').read_text()
CONFIGS = dict(re.findall(r'^`(\w+\.py)`\n```python\n(.*?)^```', PAGE, re.M | re.S))
SMALLER = {  # options that change the size alone, and the checkpoint
    'my_detector.py': (('train_dataloader.dataset.pipeline.2.scale="(128,128)"',
                        'val_dataloader.dataset.pipeline.1.scale="(128,128)"', 'model.backbone.depth=18',
                        'model.neck.in_channels="[64,128,256,512]"', 'train_cfg.max_epochs=1'), 'epoch_1.pth'),
    'my_segmenter.py': (('train_dataloader.dataset.pipeline.3.scale="(128,128)"',
                         'train_dataloader.dataset.pipeline.4.crop_size="(64,64)"',
                         'val_dataloader.dataset.pipeline.1.scale="(64,64)"', 'model.data_preprocessor.size="(64,64)"',
                         'model.backbone.depth=18', 'model.decode_head.in_channels=512',
                         'model.auxiliary_head.in_channels=256', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'),
                        'iter_2.pth')}


def with_digits(config: str) -> str:
    """Return the config for the digits, without a download."""
    config = re.sub(r"\('background', .*\)", "('background', *'0123456789')", config)
    config = config.replace("('cat', 'dog')", "tuple('0123456789')")
    config = re.sub(r'^palette = .*', 'palette = [[10 * i] * 3 for i in range(11)]', config, flags=re.M)
    config = config.replace("type='mmws.FasterRCNN'", "type='mmws.FasterRCNN', backbone=dict(frozen_stages=-1)")
    return re.sub(r"(type='mmws\.(?:FasterRCNN|EncoderDecoder)')", r'\1, ws=dict(pretrained=None)', config)


@pytest.mark.parametrize('name', SMALLER)
def test_the_config_trains(name, digits, tmp_path):
    (tmp_path / 'data').mkdir()
    Path(tmp_path, 'data', 'mine').symlink_to(digits)
    (tmp_path / name).write_text(with_digits(CONFIGS[name]))
    options, checkpoint = SMALLER[name]
    command, = re.findall(rf'^python tools/(train\.py {name}[^#\n]*)', PAGE, re.M)
    result = tool(*command.split(), '--cfg-options', *options, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'work_dirs' / Path(name).stem / checkpoint).is_file()
    assert 'LR is set' in result.stderr + result.stdout
    assert 'keeps random weights' not in result.stderr + result.stdout

import re

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint


def resnet(checkpoint, kind='mmws.ResNet', **arguments):
    init_cfg = checkpoint and {'type': 'Pretrained', 'checkpoint': checkpoint}
    return MODELS.build({'type': kind, 'depth': 18, 'init_cfg': init_cfg, **arguments})


def warnings(log: list[str]) -> list[str]:
    return [line for line in log if line.startswith('WARNING')]


@pytest.mark.parametrize(('checkpoint', 'advice'), [
    ('torchvision://resnet50', "Use checkpoint='open-mmlab://jhu/resnet50_gn_ws' in its place"),
    ('open-mmlab://resnext101_32x4d', "Use checkpoint='open-mmlab://jhu/resnext101_32x4d_gn_ws' in its place"),
    ('open-mmlab://resnet50_v1c', 'Published GN.WS weights are .*train from scratch with init_cfg=None'),
])
def test_batch_norm_weights_by_name_are_warned_of(checkpoint, advice, mmdet_scope, log):
    resnet(checkpoint)
    (line,) = warnings(log)
    assert f'the weights {checkpoint} (init_cfg) were not trained with GroupNorm' in line
    assert re.search(advice, line)


@pytest.mark.parametrize('checkpoint', [None, 'open-mmlab://jhu/resnet50_gn_ws', 'file.pth'])
def test_other_weights_are_not(checkpoint, mmdet_scope, log):
    resnet(checkpoint)
    assert warnings(log) == []


def test_a_network_that_nothing_was_converted_in_keeps_its_weights_in_peace(mmdet_scope, log):
    with pytest.warns(UserWarning, match='nothing was standardized'):
        MODELS.build({'type': 'mmws.SwinTransformer', 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'https://x/y'}})
    assert warnings(log) == []


def test_batch_norm_weights_in_a_file_are_warned_of_when_loaded(mmdet_scope, log, tmp_path):
    torch.save(resnet(None, 'ResNet').state_dict(), tmp_path / 'bn.pth')
    model = resnet(str(tmp_path / 'bn.pth'))
    assert warnings(log) == []
    model.init_weights()
    assert any('holds BatchNorm statistics (bn1.running_mean and 19 more)' in line for line in warnings(log))
    log.clear()
    load_checkpoint(resnet(None), str(tmp_path / 'bn.pth'))
    assert any('holds BatchNorm statistics' in line for line in warnings(log))
    log.clear()
    load_checkpoint(resnet(None, ws={'norm': 'keep'}), str(tmp_path / 'bn.pth'))
    torch.save(resnet(None).state_dict(), tmp_path / 'gn.pth')
    load_checkpoint(resnet(None), str(tmp_path / 'gn.pth'))
    assert warnings(log) == []

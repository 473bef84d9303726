"""Checkpoints load both ways between a model with the ``mmws.`` prefix and the toolkit's own GN + ConvWS config."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.structures import InstanceData
from torch import nn

from mmws import stock_config
from tests.helpers.models import BN, GN, WS, with_norm

PLAIN = {'norm_cfg': BN}
SMALL = {'backbone': {'depth': 18, 'init_cfg': None, 'norm_cfg': BN}}
FPN = {'in_channels': [64, 128, 256, 512], **PLAIN}
CONFIGS = {
    'Mask R-CNN': ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', {**SMALL, 'neck': FPN, 'roi_head': {
        'bbox_head': {'type': 'Shared4Conv1FCBBoxHead', **PLAIN}, 'mask_head': PLAIN},
        'test_cfg': {'rcnn': {'score_thr': 1e-4}}}),
    'RetinaNet': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', {
        **SMALL, 'neck': FPN, 'bbox_head': PLAIN, 'test_cfg': {'score_thr': 1e-4}}),
    'DeepLabv3': ('mmseg::deeplabv3/deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024.py', {
        **SMALL, 'pretrained': None, 'decode_head': {'in_channels': 512}, 'auxiliary_head': {'in_channels': 256}}),
}


def build(model, scope, in_scope):
    with in_scope(scope):
        net = MODELS.build(model)
    net.eval()
    return net


def initialize_(net):
    net.init_weights()
    for norm in net.modules():
        if isinstance(norm, nn.GroupNorm):
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)


@torch.no_grad()
def predictions(net, image):
    if hasattr(net, 'decode_head'):
        return InstanceData(seg_logits=net(image, mode='tensor'))
    shape = {'img_shape': (128, 160), 'ori_shape': (128, 160), 'batch_input_shape': (128, 160), 'scale_factor': (1, 1)}
    found = net.predict(image, [DetDataSample(metainfo=shape)])[0].pred_instances
    assert len(found) > 0
    return found


def in_order_of(reference, found):
    """Return ``found`` in the order of ``reference``: two detections of nearly equal scores may change places."""
    if 'bboxes' not in found:
        return found
    first, second = (torch.cat([each.bboxes, 1000 * each.labels[:, None]], dim=1) for each in (reference, found))
    nearest = (first[:, None] - second).abs().sum(dim=2).argmin(dim=1)
    assert sorted(nearest) == list(range(len(found)))
    return found[nearest]


@pytest.mark.parametrize('name', CONFIGS)
def test_checkpoints_load_strictly_both_ways_and_predict_the_same(name, in_scope, tmp_path):
    path, small = CONFIGS[name]
    scope = path.partition('::')[0]
    config = Config.fromfile(stock_config(path))
    config.merge_from_dict({'model': small})
    torch.manual_seed(0)
    converted = build({**config.model, 'type': f'mmws.{config.model.type}'}, scope, in_scope)
    stock = build(ConfigDict(with_norm(config.model.to_dict(), WS, GN)), scope, in_scope)
    image = torch.randn(1, 3, 128, 160)
    for source, target in ((converted, stock), (stock, converted)):
        initialize_(source)
        save_checkpoint({'state_dict': source.state_dict()}, str(tmp_path / 'x.pth'))
        load_checkpoint(target, str(tmp_path / 'x.pth'), strict=True)
        expected = predictions(source, image)
        found = in_order_of(expected, predictions(target, image))
        keys = sorted(expected.keys())  # InstanceData keeps its fields in a set: their order is not fixed
        assert sorted(found.keys()) == keys
        for a, b in ((expected[key], found[key]) for key in keys):
            if a.dtype is torch.bool:  # masks: a pixel on the threshold may fall on either side
                assert (a != b).float().mean() < 1e-5
            else:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))

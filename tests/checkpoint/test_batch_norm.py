from __future__ import annotations

import pytest
import torch
from torch import nn

from mmws import WSError, convert_
from mmws.checkpoint.batch_norm import read_batch_norm_weights

CLASSIFIER = {'fc.weight': torch.zeros(10, 8), 'fc.bias': torch.zeros(10)}


class ResNet(nn.Module):
    """A short ResNet with the toolkits' names, which are torchvision's."""

    def __init__(self, deep_stem=False):
        super().__init__()
        if deep_stem:
            self.stem = nn.Sequential(*(layer for _ in range(3) for layer in (
                nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())))
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 7), nn.BatchNorm2d(8)


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(8, 2, 1)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 1
            for name, tensor in network.state_dict().items()}


def shapes_of(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def timm_names(weights):
    """Return the names of timm's ResNets with a deep stem, ``resnet50d``."""
    return {f'bn1.{name[7:]}' if name.startswith('stem.7.') else name.replace('stem.', 'conv1.'): tensor
            for name, tensor in weights.items()}


@pytest.mark.parametrize(('deep_stem', 'form', 'left_over'), [
    (False, lambda weights: {**weights, **CLASSIFIER}, list(CLASSIFIER)),  # torchvision and timm
    (False, lambda weights: {f'module.{name}': tensor for name, tensor in weights.items()}, []),
    (False, lambda weights: {'meta': {}, 'state_dict': weights}, []),  # open-mmlab
    (False, lambda weights: {'state_dict': {f'backbone.{name}': tensor for name, tensor in weights.items()}}, []),
    (False, lambda weights: {name: tensor for name, tensor in weights.items() if 'num_' not in name}, []),
    (True, timm_names, []),
], ids=['torchvision', 'data parallel', 'open-mmlab', 'mmpretrain', 'before 0.4.1', 'timm deep stem'])
def test_backbones_of_other_libraries_are_read(tmp_path, deep_stem, form, left_over):
    backbone = ResNet(deep_stem)
    weights = weights_of(backbone)
    torch.save(form(weights), tmp_path / 'backbone.pth')
    found = read_batch_norm_weights(tmp_path / 'backbone.pth', shapes_of(Detector(backbone)))
    assert found.part == 'backbone'
    assert found.left_over == left_over
    assert found.problem == ''
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.state_dict.items())
    assert {name for name in weights if 'num_' not in name} <= found.state_dict.keys()
    backbone.load_state_dict(found.state_dict, strict='num_' in ''.join(found.state_dict))


def test_timms_model_fits_the_wrapper_of_mmpretrain(tmp_path):
    wrapper = nn.Module()
    wrapper.timm_model = ResNet()
    torch.save(weights_of(ResNet()), tmp_path / 'timm.pth')
    assert read_batch_norm_weights(tmp_path / 'timm.pth', shapes_of(Detector(wrapper))).part == 'backbone'


def test_a_whole_detector_is_read_with_its_notes(tmp_path):
    detector = Detector(ResNet())
    torch.save({'meta': {'CLASSES': ('nucleus', )}, 'state_dict': weights_of(detector)}, tmp_path / 'detector.pth')
    found = read_batch_norm_weights(tmp_path / 'detector.pth', shapes_of(detector))
    assert (found.part, found.left_over, found.meta) == ('', [], {'CLASSES': ('nucleus', )})
    detector.load_state_dict(found.state_dict)


def test_a_detector_with_other_classes_gives_its_backbone(tmp_path):
    torch.save({**weights_of(Detector(ResNet())), 'head.weight': torch.zeros(80, 8, 1, 1)}, tmp_path / 'coco.pth')
    found = read_batch_norm_weights(tmp_path / 'coco.pth', shapes_of(Detector(ResNet())))
    assert (found.part, found.left_over) == ('backbone', ['head.weight', 'head.bias'])
    assert found.problem == 'head.weight has shape (80, 8, 1, 1), expected (2, 8, 1, 1)'


def converted(network):
    convert_(network, norm='GN')
    return network


@pytest.mark.parametrize(('weights', 'message'), [
    (lambda: converted(ResNet()).state_dict(), r'no BatchNorm statistics .*load it as it is, with load_from'),
    (lambda: {name: tensor for name, tensor in weights_of(ResNet()).items() if name != 'conv1.weight'},
     r'network: conv1\.weight is missing\. Known are'),
    (lambda: weights_of(nn.Sequential(nn.BatchNorm2d(3))), r'conv1\.weight is missing, conv1\.bias is missing, '
     r'bn1\.weight is missing and 3 more'),
    (lambda: {**weights_of(ResNet()), 'conv1.weight': torch.zeros(8, 3, 3, 3)},
     r'conv1\.weight has shape \(8, 3, 3, 3\), expected \(8, 3, 7, 7\)'),
], ids=['GN+WS', 'a missing tensor', 'another network', 'another kernel'])
def test_weights_that_do_not_fit_are_refused(tmp_path, weights, message):
    torch.save(dict(weights()), tmp_path / 'weights.pth')
    with pytest.raises(WSError, match=f'weights.pth.*{message}'):
        read_batch_norm_weights(tmp_path / 'weights.pth', shapes_of(Detector(ResNet())))


CONFIG = 'lr = f()\nmodel = dict(backbone=dict(depth=18, type="ResNet"), {})\nhook = dict(type="mmws.GuardHook")'


@pytest.mark.parametrize(('meta', 'message'), [
    ({'transplant': {}}, 'written by tools/transplant.py'),
    ({'cfg': CONFIG.format('type="mmws.FCOS", ws=dict(norm="keep")')}, "type='mmws.FCOS' in its config, weight='ws'"),
    ({'cfg': CONFIG.format('type="mmws.FCOS"')}, "type='mmws.FCOS' in its config, weight='ws'"),
    ({'cfg': CONFIG.format('neck=dict(ws=dict(weight="wn"), type="mmws.FPN")')}, "type='mmws.FPN' .*, weight='wn'"),
], ids=['a transplant', 'BatchNorm and WS', 'default', 'a part'])
def test_weights_of_standardized_convolutions_are_refused(meta, message, tmp_path):
    torch.save({'meta': meta, 'state_dict': weights_of(ResNet())}, tmp_path / 'weights.pth')
    with pytest.raises(WSError, match=f'weights.pth was .*{message}'):
        read_batch_norm_weights(tmp_path / 'weights.pth', shapes_of(Detector(ResNet())))


@pytest.mark.parametrize('config', [
    CONFIG.format('type="FCOS"'), CONFIG.format('type="mmws.FCOS", ws=dict(norm="keep", weight="plain")'), 'no (config',
    CONFIG.format('type=f()'), 'raise SystemExit', None], ids=['stock', 'plain', 'no code', 'a call', 'code', 'None'])
def test_notes_of_a_plain_network_are_accepted(config, tmp_path):
    torch.save({'meta': {'cfg': config}, 'state_dict': weights_of(ResNet())}, tmp_path / 'weights.pth')
    assert read_batch_norm_weights(tmp_path / 'weights.pth', shapes_of(Detector(ResNet()))).part == 'backbone'


def test_a_hostile_file_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return print, ('executed', )

    torch.save({'state_dict': {'running_mean': Payload()}}, tmp_path / 'hostile.pth')
    with pytest.raises(WSError, match='nothing in it was executed'):
        read_batch_norm_weights(tmp_path / 'hostile.pth', {})

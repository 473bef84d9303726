"""``ws=dict(norm=...)`` against the network that the toolkit builds from ``norm_cfg``."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS
from torch import nn

from mmws import ConvWS2d, convert_
from mmws.conversion.replace_norms import NORMS, Norm, replace_norm_
from mmws.layers.batch_channel_norm import BatchChannelNorm, EstimatedBatchChannelNorm, EstimatedBatchNorm
from mmws.layers.switchable_norm import SwitchableNorm

CLASSES = {'GN': nn.GroupNorm, 'LN': nn.GroupNorm, 'IN': nn.InstanceNorm2d, 'SN': SwitchableNorm,
           'BCN': BatchChannelNorm, 'EstBN': EstimatedBatchChannelNorm}
CONFIGS = {'GN': {'type': 'GN', 'num_groups': 32}, 'LN': {'type': 'GN', 'num_groups': 1},
           'IN': {'type': 'IN', 'affine': True}, 'SN': {'type': 'mmws.SN'}, 'BCN': {'type': 'mmws.BCN'},
           'EstBN': {'type': 'mmws.EstBN'}}


def resnet(**arguments):
    return MODELS.build({'type': 'mmws.mmdet.ResNet', 'depth': 18, 'base_channels': 32, 'stem_channels': 32,
                         'norm_eval': False, **arguments})


@pytest.mark.parametrize('kind', NORMS)
def test_a_resnet_equals_the_one_built_with_the_norm(kind, mmdet_scope):
    converted = resnet(ws={'norm': kind})
    built = resnet(ws={'norm': 'keep'}, norm_cfg=CONFIGS[kind])
    assert list(converted.state_dict()) == list(built.state_dict())
    assert f'{NORMS[kind].prefix}1.weight' in converted.state_dict()
    built.load_state_dict(converted.state_dict(), strict=True)
    assert str(converted).replace('(bn): BatchNorm2d', '(bn): _BatchNorm') == str(built)
    assert [type(m) for m in converted.modules() if isinstance(m, nn.Conv2d)] == [ConvWS2d] * 20
    x = torch.randn(2, 3, 64, 64)
    for training in (True, False):
        converted.train(training)
        built.train(training)
        torch.testing.assert_close(converted(x), built(x))


@pytest.mark.parametrize('kind', NORMS)
def test_the_module_keeps_identity_tensors_hooks_and_mode(kind):
    norm, calls = nn.BatchNorm2d(48, momentum=0.2).double().eval(), []
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.running_var)
    norm.register_forward_hook(lambda *_: calls.append(1))
    before, parameters = copy.deepcopy(norm), list(norm.parameters())
    assert replace_norm_(norm, kind) is norm
    assert type(norm) is CLASSES[kind]
    assert not any(module.training for module in norm.modules())
    holder = norm.bn if kind in ('BCN', 'EstBN') else norm
    assert [holder.weight, holder.bias] == parameters
    if kind in ('SN', 'BCN', 'EstBN'):
        assert torch.equal(holder.running_var, before.running_var)
    norm(torch.randn(2, 48, 3, 3, dtype=torch.float64))
    assert calls == [1]


def test_the_old_norm_becomes_a_part_of_batch_channel_norm():
    for kind in (nn.BatchNorm1d, nn.SyncBatchNorm):
        norm = kind(8, eps=1e-3, momentum=0.3)
        replace_norm_(norm, 'BCN')
        assert (type(norm.bn), norm.bn.eps, norm.bn.momentum) == (kind, 1e-3, 0.3)
    norm = replace_norm_(nn.BatchNorm2d(8, momentum=None), 'EstBN')
    assert (type(norm.bn), norm.bn.momentum) == (EstimatedBatchNorm, 0.1)


def test_an_unknown_kind_is_refused():
    norm = nn.BatchNorm2d(8)
    for kind, message in (('keep', "norm 'keep': expected one of 'BCN', 'EstBN', 'GN'"), ('gn', "did you mean 'GN'")):
        with pytest.raises(ValueError, match=message):
            replace_norm_(norm, kind)
    assert type(norm) is nn.BatchNorm2d


def test_a_norm_is_one_entry(monkeypatch):
    monkeypatch.setitem(NORMS, 'X', Norm('MyNorm', 'x', lambda norm, *_: nn.LazyInstanceNorm2d()))
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    assert '1 BatchNorm replaced by MyNorm' in str(convert_(net, norm='X'))
    assert type(net[1]) is nn.LazyInstanceNorm2d


@pytest.mark.parametrize('kind', NORMS)
def test_without_affine_parameters_or_statistics(kind):
    norm = replace_norm_(nn.BatchNorm2d(8, affine=False, track_running_stats=False), kind)
    assert norm(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)
    assert (norm.bn if kind in ('BCN', 'EstBN') else norm).weight is None


@pytest.mark.parametrize('dimensions', [1, 2, 3])
@pytest.mark.parametrize('batch_norm', [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_instance_norm_has_the_dimensions_of_its_convolution(dimensions, batch_norm):
    if batch_norm is nn.BatchNorm1d:
        batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    net = nn.Sequential((nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](3, 4, 2), batch_norm(4))
    convert_(net, norm='IN')
    assert type(net[1]) is (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dimensions - 1]
    assert net(torch.randn(2, 3, *[5] * dimensions)).isfinite().all()


def test_a_single_value_per_channel_gets_a_group_norm():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32), nn.Flatten(),
                        nn.Linear(32, 8), nn.BatchNorm1d(8))
    report = convert_(net, norm='IN')
    assert report.norms == {
        '2': 'BatchNorm2d -> GroupNorm(4, 32): InstanceNorm is undefined for a single value per channel',
        '5': 'BatchNorm1d -> GroupNorm(1, 8): InstanceNorm is undefined for a single value per channel'}
    assert net(torch.randn(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(('kind', 'trains'), [('GN', True), ('LN', True), ('IN', True), ('SN', False), ('BCN', False),
                                              ('EstBN', False)])
def test_a_frozen_norm_with_batch_statistics_stays_frozen(kind, trains):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).requires_grad_(False))
    convert_(net, norm=kind)
    assert {parameter.requires_grad for parameter in net[1].parameters()} == {trains}


def test_timms_norm_with_an_activation_is_replaced_or_reported():
    norm_act = pytest.importorskip('timm.layers.norm_act')
    for kind in NORMS:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), norm_act.BatchNormAct2d(8))
        report = convert_(net, norm=kind)
        if kind in ('GN', 'LN'):
            assert type(net[1]) is norm_act.GroupNormAct
        else:
            assert type(net[1]) is norm_act.BatchNormAct2d
            assert report.skipped['1'] == 'BatchNormAct2d has a built-in activation, only GN and LN can replace it'


def test_a_second_conversion_keeps_batch_channel_norm(mmdet_scope):
    net = resnet(ws={'norm': 'BCN'})
    before = str(net)
    for kind in ('BCN', 'GN', 'keep'):
        report = convert_(net, norm=kind)
        assert (report.norms, report.converted) == ({}, [])
        assert not any('BatchNorm' in reason for reason in report.skipped.values())
    assert str(net) == before


def test_norms_in_mmcvs_conv_module(mmdet_scope):
    for kind in ('SN', 'BCN', 'EstBN'):
        module = ConvModule(3, 8, 3, norm_cfg={'type': f'mmws.{kind}', 'requires_grad': False})
        assert module.norm_name == NORMS[kind].prefix
        assert type(module.norm) is CLASSES[kind]
        assert not any(parameter.requires_grad for parameter in module.norm.parameters())
        assert convert_(module, norm='keep').converted == ['conv']
        assert module(torch.randn(1, 3, 8, 8)).shape == (1, 8, 6, 6)
    assert ResNet(18, norm_cfg={'type': 'mmws.SN'}).norm1_name == 'sn1'

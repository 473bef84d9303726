import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from mmws import ConvWS2d, WSError, convert_, fold
from mmws.conversion.parametrize_convs import WEIGHTS, reparametrize_conv_, weight_form, written_through
from mmws.conversion.replace_norms import NORMS
from mmws.experiments.demo_samples import demo_samples
from mmws.ops.torch_compat import NORMALIZE
from tests.helpers.pairs import pairs
from tests.helpers.versions import WN, needs_weight_norm


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
                         nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 2))


def step(model, *inputs, **keywords):
    """Take a training step; the loss and all parameters must be finite after it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss = model(*inputs, **keywords)
    loss = model.parse_losses(loss)[0] if isinstance(loss, dict) else loss.sum()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def or_refused(weight):
    """Return a context that expects an error if this torch does not have the option."""
    return nullcontext() if weight in ('ws', 'plain', *NORMALIZE) else pytest.raises(WSError, match='needs torch >= ')


@pytest.mark.parametrize('weight', WEIGHTS)
@pytest.mark.parametrize('norm', [*NORMS, 'keep'])
def test_each_norm_with_each_weight_takes_a_step_at_batch_1(norm, weight):
    with or_refused(weight):
        take_a_first_step(small(), norm, weight)


def take_a_first_step(net, norm, weight):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        report = convert_(net, norm=norm, weight=weight)
        again = convert_(net, norm=norm, weight=weight)
    assert report.converted == ([] if weight == 'plain' else ['0', '3'])
    assert (again.converted, again.norms) == ([], {})
    assert {weight_form(net[index]) for index in (0, 3)} == {weight}
    assert f'{WEIGHTS[weight][0]}: {len(report.converted)} convolutions {WEIGHTS[weight][1]}' in str(report)
    step(net, torch.randn(1, 3, 8, 8))
    assert list(copy.deepcopy(net).state_dict()) == list(net.state_dict())


KINDS = {nn.Conv1d: lambda w: w, nn.Conv2d: lambda w: w, nn.ConvTranspose2d: lambda w: w.transpose(0, 1)}


@needs_weight_norm
def test_normalized_weights_follow_the_definition():
    for make, filters in KINDS.items():
        normal = reparametrize_conv_(make(4, 6, 3), 'wn')
        normal.parametrizations.weight.original0.data.fill_(3)
        torch.testing.assert_close(filters(normal.weight).flatten(1).norm(dim=1), torch.full((6,), 3.))


@pytest.mark.parametrize(('make', 'filters'), KINDS.items())
def test_spectral_weights_follow_the_definition(make, filters):
    conv = make(4, 6, 3)
    raw = conv.weight.detach().clone() * 2
    spectral = reparametrize_conv_(conv, 'spectral')
    spectral.load_state_dict({'weight': raw}, strict=False)
    for _ in range(500):  # the power iteration converges slowly if two singular values are close
        computed = spectral.weight
    largest = torch.linalg.matrix_norm(filters(raw).flatten(1), 2)
    torch.testing.assert_close(computed, raw / largest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('weight', WEIGHTS)
def test_all_forms_apply_to_the_same_convolutions(weight):
    with or_refused(weight):
        assert convert_(small(), weight=weight, exclude=['3']).converted == ([] if weight == 'plain' else ['0'])


@pytest.mark.parametrize(('weight', 'keys'), [
    pytest.param('wn', ['parametrizations.weight.original0', 'parametrizations.weight.original1'],
                 marks=needs_weight_norm),
    ('spectral', ['parametrizations.weight.original', 'parametrizations.weight.0._u', 'parametrizations.weight.0._v']),
])
def test_keys_are_those_of_torch_and_plain_weights_load(weight, keys):
    conv = reparametrize_conv_(nn.Conv2d(3, 4, 3, bias=False), weight)
    assert list(conv.state_dict()) == keys
    reference = nn.Conv2d(3, 4, 3, bias=False)
    conv.load_state_dict(reference.state_dict(), strict=True)
    (parametrizations.weight_norm if weight == 'wn' else parametrizations.spectral_norm)(reference)
    torch.testing.assert_close(conv.eval().weight, reference.eval().weight, rtol=2e-2, atol=1e-2)
    conv.load_state_dict(reference.state_dict(), strict=True)
    assert torch.equal(conv.weight, reference.weight)


@pytest.mark.parametrize('weight', [WN, 'spectral'])
def test_init_weights_changes_the_weights(weight, mmdet_scope):
    config = {'type': 'mmws.ResNet', 'depth': 18, 'ws': {'weight': weight}}
    model = MODELS.build({**config, 'init_cfg': {'type': 'Constant', 'layer': 'Conv2d', 'val': 0.5}})
    originals = list(model.parameters())
    model.init_weights()
    assert all(after is before for after, before in pairs(model.parameters(), originals))
    half = torch.full((64, 3, 7, 7), 0.5)
    expected = half if weight == 'wn' else half / torch.linalg.matrix_norm(half.flatten(1), 2)
    torch.testing.assert_close(model.conv1.weight, expected)
    loaded = copy.deepcopy(model).state_dict()
    with written_through(model):
        nn.init.ones_(model.conv1.weight)
        model.load_state_dict(loaded)
    torch.testing.assert_close(model.conv1.weight, expected)


@pytest.mark.parametrize(('first', 'then'), [
    ('ws', 'spectral'), ('spectral', 'ws'), ('ws', 'plain'), pytest.param('ws', 'wn', marks=needs_weight_norm),
    pytest.param('wn', 'spectral', marks=needs_weight_norm)])
def test_a_second_form_raises_and_leaves_the_model_unchanged(first, then):
    net = small()
    convert_(net, weight=first, norm='keep')
    before = str(net)
    message = f"ws option weight: 0 is already {WEIGHTS[first][1]}, cannot change it to '{then}'"
    with pytest.raises(WSError, match=message):
        convert_(net, weight=then)
    assert str(net) == before


def test_mmcvs_standardized_convolution_counts(mmdet_scope):
    config = {'type': 'mmws.ResNet', 'depth': 18, 'conv_cfg': {'type': 'ConvWS'}, 'ws': {'weight': 'plain'}}
    with pytest.raises(WSError, match='conv1 is already standardized'):
        MODELS.build(config)


@pytest.mark.parametrize('weight', [WN, 'spectral'])
def test_folded_convolutions_are_plain_and_have_the_same_output(weight):
    net = small()
    convert_(net, weight=weight)
    net.eval()
    folded, x = fold(net), torch.randn(2, 3, 8, 8)
    assert type(folded[0]) is nn.Conv2d
    assert not any(map(parametrize.is_parametrized, folded.modules()))
    assert parametrize.is_parametrized(net[0])
    assert not any('parametrizations' in key for key in folded.state_dict())
    torch.testing.assert_close(folded(x), net(x))


def test_warns_if_nothing_changes_unless_weights_are_plain():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with pytest.warns(UserWarning, match='nothing was spectrally normalized in Sequential: it has no norm'):
        convert_(net, weight='spectral')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        convert_(net, weight='plain')


def test_the_default_is_standardization():
    net = small()
    convert_(net)
    assert type(net[0]) is ConvWS2d


DETECTOR = {
    'type': 'mmws.mmdet.RetinaNet', 'data_preprocessor': {'type': 'mmdet.DetDataPreprocessor'},
    'backbone': {'type': 'ResNet', 'depth': 18, 'base_channels': 8, 'stem_channels': 8, 'norm_eval': False},
    'neck': {'type': 'FPN', 'in_channels': [16, 32, 64], 'out_channels': 8, 'num_outs': 3, 'norm_cfg': {'type': 'BN'}},
    'bbox_head': {'type': 'RetinaSepBNHead', 'num_classes': 3, 'num_ins': 3, 'in_channels': 8, 'feat_channels': 8,
                  'stacked_convs': 1, 'norm_cfg': {'type': 'BN'}, 'anchor_generator': {
                      'type': 'AnchorGenerator', 'octave_base_scale': 4, 'scales_per_octave': 1, 'ratios': [1.0],
                      'strides': [8, 16, 32]}},
    'train_cfg': {'assigner': {'type': 'MaxIoUAssigner', 'pos_iou_thr': 0.5, 'neg_iou_thr': 0.4, 'min_pos_iou': 0},
                  'allowed_border': -1, 'pos_weight': -1},
}
DETECTOR['backbone']['out_indices'] = (1, 2, 3)
SEGMENTER = {
    'type': 'mmws.mmseg.EncoderDecoder', 'data_preprocessor': {'type': 'mmseg.SegDataPreProcessor'},
    'backbone': {'type': 'ResNetV1c', 'depth': 18, 'base_channels': 8, 'stem_channels': 8},
    'decode_head': {'type': 'ASPPHead', 'in_channels': 64, 'channels': 8, 'num_classes': 4, 'norm_cfg': {'type': 'BN'}},
}


@pytest.mark.parametrize('norm', [*NORMS, 'keep'])
@pytest.mark.parametrize('weight', WEIGHTS)
def test_a_detector_and_a_segmenter_take_a_step_at_batch_1(norm, weight, in_scope):
    for config, scope in ((DETECTOR, 'mmdet'), (SEGMENTER, 'mmseg')):
        with or_refused(weight), in_scope(scope):
            model = MODELS.build(ConfigDict({**copy.deepcopy(config), 'ws': {'norm': norm, 'weight': weight}}))
            model.init_weights()
            inputs, samples = torch.randn(1, 3, 128, 128), demo_samples(scope, (128, 128), 3)
            if scope == 'mmseg' and norm in ('keep', 'BCN'):  # the image pool gives a single value per channel
                with pytest.raises(ValueError, match='Expected more than 1 value per channel when training'):
                    step(model, inputs, samples, mode='loss')
            else:
                step(model, inputs, samples, mode='loss')

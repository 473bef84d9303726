"""Converted checkpoints compute the same features as the source networks.

The source networks are torchvision's with the authors' convolution and GroupNorm, and the authors' DeepLabv3.
"""

import pickle
import re
import struct
from functools import lru_cache, partial

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models import resnet

from mmws.checkpoint import convert_checkpoint
from mmws.checkpoint.authors_imagenet import resnet_shapes
from tests.helpers.authors import Authors
from tests.helpers.checkpoints import CAFFE2
from tests.helpers.commands import REPOSITORY
from tests.helpers.pairs import pairs

ARCHITECTURES = {'resnet50': ('ResNet', 50, {}), 'resnet101': ('ResNet', 101, {}),
                 'resnext50_32x4d': ('ResNeXt', 50, {'groups': 32, 'base_width': 4}),
                 'resnext101_32x4d': ('ResNeXt', 101, {'groups': 32, 'base_width': 4})}


class AuthorsConv2d(nn.Conv2d):
    """Convolution of layers.py in joe-siyuan-qiao/pytorch-classification."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        std = weight.flatten(1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return F.conv2d(x, weight / std, self.bias, self.stride, self.padding, self.dilation, self.groups)


@lru_cache(maxsize=None)
def source_network(architecture):
    """Return the network in float64, to avoid rounding errors over 53 layers, with weights that fit in float32."""
    groups = {'groups': 32, 'width_per_group': 4} if 'resnext' in architecture else {}
    with torch.device('meta'):
        net = resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], norm_layer=partial(nn.GroupNorm, 32), **groups)
    net.to_empty(device='cpu')
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = AuthorsConv2d
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, float('conv' not in name), 0.2)
    return net.double().eval()


def features(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    outputs = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        outputs.append(x)
    return outputs


def target_network(architecture, in_scope):
    kind, depth, groups = ARCHITECTURES[architecture]
    with in_scope('mmdet'), torch.device('meta'):
        net = MODELS.build({'type': f'mmws.{kind}', 'depth': depth, **groups})
    net.eval()
    return net


def save_authors_checkpoint(net, path):
    torch.save({f'module.{key}': value.float() for key, value in net.state_dict().items()}, path,
               _use_new_zipfile_serialization=False)


def caffe2_name(key):
    owner, part = key.rsplit('.', 1)
    norm = 'bn' in owner or owner.endswith('downsample.1')
    end = ('_gn_s' if part == 'weight' else '_gn_b') if norm else '_w'
    if owner in ('fc',):
        return f'pred_{part[0]}'
    if 'layer' not in owner:
        return f'conv1{end}'
    stage, block, inner = re.match(r'layer(\d)\.(\d+)\.(\w+)', owner).groups()
    return f'res{int(stage) + 1}_{block}_{CAFFE2[inner.replace("bn", "conv")]}{end}'


class Python2Pickler(pickle._Pickler):
    """Pickler that writes bytes and text as a ``str`` of Python 2."""

    def save_string(self, value):
        value = value if isinstance(value, bytes) else value.encode()
        self.write(pickle.BINSTRING + struct.pack('<i', len(value)) + value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # noqa: RUF012


def save_caffe2_checkpoint(net, path, python2):
    blobs = {caffe2_name(key): value.float().numpy() for key, value in net.state_dict().items()}
    assert len(blobs) == len(net.state_dict())
    blobs['conv1_w'] = blobs['conv1_w'][:, ::-1].copy()
    with path.open('wb') as file:
        pickler = Python2Pickler(file, 2) if python2 else pickle.Pickler(file, 2)
        pickler.dump({'blobs': {**blobs, 'lr': 0.1}})


@torch.no_grad()
def assert_same_features(state_dict, architecture, in_scope, swap=False):
    target, source = target_network(architecture, in_scope), source_network(architecture)
    target.to_empty(device='cpu').double().load_state_dict(state_dict, strict=True)
    x = torch.randn(1, 3, 64, 64).double()
    for a, b in pairs(target(x), features(source, x.flip(1) if swap else x)):
        assert (a - b).norm() <= 1e-9 * b.norm()


@pytest.mark.parametrize('architecture', ['resnet50', 'resnext50_32x4d'])
def test_converted_authors_imagenet_weights_give_the_same_features(architecture, in_scope, tmp_path):
    save_authors_checkpoint(source_network(architecture), tmp_path / 'R.pth.tar')
    converted = convert_checkpoint(tmp_path / 'R.pth.tar')
    assert_same_features(converted.state_dict, architecture, in_scope)
    about = converted.meta['mmws']
    assert about['network'] == architecture
    assert about['left_over'].keys() == {'fc.weight', 'fc.bias'}
    assert (about['eps'], about['unbiased'], about['input']['channels']) == (1e-5, True, 'RGB')


@pytest.mark.parametrize('python2', [False, True])
def test_converted_caffe2_weights_give_the_same_features_in_bgr_and_rgb(python2, in_scope, tmp_path):
    save_caffe2_checkpoint(source_network('resnet50'), tmp_path / 'R.pkl', python2)
    converted = convert_checkpoint(tmp_path / 'R.pkl')
    assert_same_features(converted.state_dict, 'resnet50', in_scope, swap=True)
    about = converted.meta['mmws']
    assert about['input'] == {'channels': 'BGR', 'mean': [102.9801, 115.9465, 122.7717], 'std': [1, 1, 1]}
    assert about['left_over'].keys() == {'pred_w', 'pred_b', 'lr'}
    reordered = convert_checkpoint(tmp_path / 'R.pkl', to_rgb=True)
    about = reordered.meta['mmws']
    assert about['input'] == {'channels': 'RGB', 'mean': [122.7717, 115.9465, 102.9801], 'std': [1, 1, 1]}
    assert torch.equal(reordered.state_dict.pop('conv1.weight'), converted.state_dict.pop('conv1.weight').flip(1))
    assert all(torch.equal(value, reordered.state_dict[key]) for key, value in converted.state_dict.items())


HEAD = {'bottleneck.conv': 'conv2', 'bottleneck.gn': 'bn2', 'conv_seg': 'conv3', 'image_pool.1.conv': 'aspp5',
        'image_pool.1.gn': 'aspp5_bn', **{f'aspp_modules.{i}.conv': f'aspp{i + 1}' for i in range(4)},
        **{f'aspp_modules.{i}.gn': f'aspp{i + 1}_bn' for i in range(4)}}


def authors_deeplab_name(key):
    place, name = key.split('.', 1)
    owner, part = name.rsplit('.', 1)
    return f'module.{name.replace("gn", "bn")}' if place == 'backbone' else f'module.aspp.{HEAD[owner]}.{part}'


@torch.no_grad()
def test_converted_authors_deeplab_gives_the_same_logits(in_scope, tmp_path):
    config = Config.fromfile(REPOSITORY / 'configs' / 'deeplabv3_r101_gnws_voc12aug_jhu.py').model
    config.pretrained = None
    with in_scope('mmseg'), torch.device('meta'):
        net = MODELS.build(config).eval()
    weights = {key: torch.randn(value.shape) * 0.3 for key, value in net.state_dict().items()}
    renamed = {authors_deeplab_name(key): value for key, value in weights.items()}
    torch.save({'epoch': 50, 'state_dict': renamed, 'optimizer': {'state': {0: torch.ones(3)}}}, tmp_path / 'd.pth')
    converted = convert_checkpoint(tmp_path / 'd.pth')
    net.to_empty(device='cpu').double().load_state_dict(converted.state_dict, strict=True)
    image = torch.randn(1, 3, 65, 97).double()
    logits = net.encode_decode(image, [{'img_shape': (65, 97)}])
    expected = Authors({key: value.double() for key, value in weights.items()}).logits(image)
    assert (logits - expected).norm() <= 1e-9 * expected.norm()
    assert converted.meta['mmws']['left_over'] == {'epoch': 'not a weight', 'optimizer': 'not a weight'}
    assert converted.meta['mmws']['network'] == 'DeepLabv3 resnet101'


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_expected_shapes_equal_those_of_the_toolkit(architecture, in_scope):
    net = target_network(architecture, in_scope)
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert resnet_shapes(net.state_dict()) == (architecture, expected)

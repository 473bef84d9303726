"""Networks of the benchmark, and the forms of each that it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d as MmcvConvWS2d
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmws.layers.conv import ConvWS2d
from mmws.openmmlab.stock_configs import read_mmws_config, stock_config
from mmws.ops.standardize import standardize_weight
from mmws.ops.torch_compat import version

__all__ = ['ALLOCATOR', 'COST_FORMS', 'NETWORKS', 'STEP_FORMS', 'Form', 'scope_of']

NETWORKS = {
    'RetinaNet': 'retinanet_r50_gnws.py',
    'Mask R-CNN': 'mask_rcnn_r50_gnws.py',
    'stock Mask R-CNN': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'stock DeepLabv3': 'mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512.py',
}


class TimmConv(nn.Conv2d):
    """timm's ``StdConv2d``: the kernel of BatchNorm applied to the filters, biased and with eps inside the root."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True,
                                          momentum=0.0, eps=self.eps)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)  # type: ignore[no-any-return]


class AuthorsConv(nn.Conv2d):
    """The authors' operations in their order (``layers.py`` of joe-siyuan-qiao/pytorch-classification)."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        std = weight.view(weight.size(0), -1).std(1).view(-1, 1, 1, 1) + self.eps
        return self._conv_forward(x, weight / std.expand_as(weight), self.bias)  # type: ignore[no-any-return]


class ParametrizedConv(nn.Conv2d):
    """Its weight is parametrized with ``torch.nn.utils.parametrize``."""


class CopyConv(nn.Conv2d):
    """Lower bound for a layer that caches its weight: it copies the weight once forward and once backward."""

    def forward(self, x: Tensor) -> Tensor:
        if vars(self).get('version') != version(self.weight):
            cached = vars(self).setdefault('cached', torch.empty_like(self.weight, requires_grad=False))
            vars(self).update(version=version(self.weight), cached=cached.copy_(self.weight.detach()))
        weight: Tensor = _Copy.apply(self.weight, vars(self)['cached'])  # type: ignore[no-untyped-call]
        return self._conv_forward(x, weight, self.bias)  # type: ignore[no-any-return]


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, cached: Tensor) -> Tensor:
        ctx.save_for_backward(cached)
        return cached.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # reads the cached weight as the gradient of WS does
        return torch.add(grad, *ctx.saved_tensors, alpha=1e-9), None


class _Standardize(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return standardize_weight(weight)


@dataclass(frozen=True)
class Form:
    """One form of a network."""

    conv: type[nn.Conv2d] = ConvWS2d  # type of the standardized convolutions
    compiled: bool = False  # compile the backbone with torch.compile
    channels_last: bool = False  # memory format of weights and images
    converted: bool = True  # False: the network of the stock config, with BatchNorm
    environment: Mapping[str, str] | None = None  # if given, run in another process with these environment variables

    def build(self, network: str) -> nn.Module:
        """Build ``'ResNet-50'``, mmdet's with all stages trained, or a model of :data:`NETWORKS`."""
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(scope_of(network)):
            net: nn.Module = MODELS.build(_config(network, self.converted))
        for module in [module for module in net.modules() if type(module) is ConvWS2d]:
            module.__class__ = self.conv  # type: ignore[assignment]
            if self.conv is ParametrizedConv:
                parametrize.register_parametrization(module, 'weight', _Standardize())
        if self.compiled:
            getattr(net, 'backbone', net).compile()
        return net.to(memory_format=torch.channels_last) if self.channels_last else net  # type: ignore[call-overload]


def scope_of(network: str) -> str:
    """Return the toolkit of a network."""
    return 'mmseg' if 'DeepLab' in network else 'mmdet'


def _config(network: str, converted: bool) -> ConfigDict:
    if network == 'ResNet-50':
        return ConfigDict(type='mmws.ResNet', depth=50, norm_cfg={'type': 'GN', 'num_groups': 32},
                          frozen_stages=-1, norm_eval=False)
    name = NETWORKS[network]
    model = ConfigDict(Config.fromfile(stock_config(name)).model if '::' in name else read_mmws_config(name)['model'])
    _, _, inner = model.type.rpartition('.')
    model.type = f'mmws.{inner}' if converted else inner
    return model


COST_FORMS = {
    'plain': Form(nn.Conv2d),
    'plain again': Form(nn.Conv2d),
    'a copy each way': Form(CopyConv),
    'mmws': Form(),
    'mmcv': Form(MmcvConvWS2d),
    "timm's trick": Form(TimmConv),
    "authors' code": Form(AuthorsConv),
    'parametrize': Form(ParametrizedConv),
    'plain, compiled': Form(nn.Conv2d, compiled=True),
    'mmws, compiled': Form(compiled=True),
    'mmcv, compiled': Form(MmcvConvWS2d, compiled=True),
}
ALLOCATOR = {'MALLOC_MMAP_THRESHOLD_': str(2 ** 30), 'MALLOC_TRIM_THRESHOLD_': str(2 ** 32)}
STEP_FORMS = {
    'GN': Form(nn.Conv2d),
    'BN': Form(converted=False),
    'GN+WS': Form(),
    'GN+WS, channels_last': Form(channels_last=True),
    'GN+WS, compiled backbone': Form(compiled=True),
    'GN+WS, alone': Form(environment={}),
    'GN+WS, alone, allocator': Form(environment=ALLOCATOR),
}

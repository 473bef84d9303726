"""Networks of the benchmark, and the forms of each that it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d as MmcvConvWS2d
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmws.experiments.benchmark.convs import AuthorsConv, CopyConv, ParametrizedConv, TimmConv, use_convs_
from mmws.layers.conv import ConvWS2d
from mmws.openmmlab.stock_configs import read_mmws_config, stock_config

__all__ = ['ALLOCATOR', 'COST_FORMS', 'NETWORKS', 'STEP_FORMS', 'Form', 'scope_of']

NETWORKS = {
    'RetinaNet': 'retinanet_r50_gnws.py',
    'Mask R-CNN': 'mask_rcnn_r50_gnws.py',
    'stock Mask R-CNN': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'stock DeepLabv3': 'mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512.py',
    'demo Mask R-CNN': 'demo/mask_rcnn_r18_gnws_digits.py',
    'demo DeepLabv3': 'demo/deeplabv3_r18_gnws_digits.py',
}


@dataclass(frozen=True)
class Form:
    """One form of a network."""

    conv: type[nn.Conv2d] = ConvWS2d  # type of the standardized convolutions
    compiled: bool = False  # compile the backbone with torch.compile
    channels_last: bool = False  # memory format of weights and images
    cache: bool = True  # False: the layers keep no standardized weight
    cpp: bool = False  # with the C++ kernels
    converted: bool = True  # False: the network of the stock config, with BatchNorm
    environment: Mapping[str, str] | None = None  # if given, run in another process with these environment variables

    def build(self, network: str) -> nn.Module:
        """Build ``'ResNet-50'``, mmdet's with all stages trained, or a model of :data:`NETWORKS`."""
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(scope_of(network)):
            net: nn.Module = MODELS.build(_config(network, self.converted))
        use_convs_(net, self.conv)
        for module in net.modules():
            if isinstance(module, ConvWS2d):
                module.use_cache = self.cache
        if self.compiled:
            getattr(net, 'backbone', net).compile(fullgraph=True)  # an error instead of a fallback to eager code
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
    'mmws, MMWS_CPP=1': Form(cpp=True),
    'mmws, cache=False': Form(cache=False),
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

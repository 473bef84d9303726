"""DeepLabv3 head of the Weight Standardization authors; mmseg's differs. Imported when a config uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import ASPPHead
from mmseg.models.utils import resize
from torch import Tensor

from mmws.openmmlab.registry import MODELS

__all__ = ['DeepLabV3Head']


@MODELS.register_module()
class DeepLabV3Head(ASPPHead):  # type: ignore[misc]
    """mmseg's ``ASPPHead`` with the two differences of the authors' DeepLabv3.

    A 1x1 convolution fuses the branches (mmseg: 3x3), and the image pool is the last branch (mmseg: the first). The
    arguments are those of ``ASPPHead``; the authors' values are ``channels=256, dilations=(1, 6, 12, 18),
    dropout_ratio=0, align_corners=True``.

    Reference: chenxi116/DeepLabv3.pytorch; DeepLabv3 is arXiv 1706.05587.

    Shape:
        A list of feature maps, with (N, in_channels, H, W) at ``in_index``, to (N, num_classes, H, W).

    Example:
        >>> head = DeepLabV3Head(in_channels=8, channels=4, num_classes=3, norm_cfg=dict(type='GN', num_groups=2))
        >>> head([torch.randn(1, 8, 9, 7)]).shape
        torch.Size([1, 3, 9, 7])
    """

    def __init__(self, dilations: Sequence[int] = (1, 6, 12, 18), **kwargs: Any) -> None:
        super().__init__(dilations, **kwargs)
        self.bottleneck = ConvModule((len(dilations) + 1) * self.channels, self.channels, 1, conv_cfg=self.conv_cfg,
                                     norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        x = self._transform_inputs(inputs)
        pooled = resize(self.image_pool(x), size=x.shape[2:], mode='bilinear', align_corners=self.align_corners)
        features: Tensor = self.bottleneck(torch.cat([*self.aspp_modules(x), pooled], dim=1))
        return features

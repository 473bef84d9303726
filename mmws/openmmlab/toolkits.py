"""Table of the toolkits: one row per toolkit, with all its differences from the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ['HEADS', 'METRICS', 'SCOPE_ADVICE', 'TOOLKITS', 'Metric', 'Toolkit', 'install_advice', 'keeps_bgr']


@dataclass(frozen=True)
class Metric:
    """A metric of a toolkit's evaluator."""

    name: str  # in summary.json
    label: str  # of the axis in a figure
    out_of: float = 1  # the largest possible value in the log, 1 or 100


@dataclass(frozen=True)
class Toolkit:
    """A toolkit on mmengine."""

    scope: str  # import name and registry scope
    distributions: tuple[str, ...]  # names on PyPI, OneDL's first
    heads: tuple[str, ...] = ()  # paths in `model` of the heads whose num_classes must match the dataset
    metrics: Mapping[str, Metric] = field(default_factory=dict)  # by their names in the log
    rgb_switch: str = '_channel_conversion'  # attribute of the data preprocessor; False if images stay in BGR
    group_width: str = 'base_width'  # attribute of a ResNeXt: the channels per group


TOOLKITS = {toolkit.scope: toolkit for toolkit in (
    Toolkit('mmdet', ('onedl-mmdetection', 'mmdet'), ('bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head'),
            {'coco/bbox_mAP': Metric('box_ap', 'box AP'), 'coco/segm_mAP': Metric('mask_ap', 'mask AP')}),
    Toolkit('mmseg', ('onedl-mmsegmentation', 'mmsegmentation'), ('decode_head', 'auxiliary_head'),
            {'mIoU': Metric('miou', 'mean IoU', out_of=100)}, rgb_switch='channel_conversion'),
    Toolkit('mmpretrain', ('onedl-mmpretrain', 'mmpretrain'), (),
            {f'accuracy/top{k}': Metric(f'top{k}', f'top-{k} accuracy', out_of=100) for k in (1, 5)},
            rgb_switch='to_rgb', group_width='width_per_group'),
)}
"""To support another toolkit, for example mmpose, add a row."""

HEADS = tuple(head for toolkit in TOOLKITS.values() for head in toolkit.heads)
METRICS = {key: metric for toolkit in TOOLKITS.values() for key, metric in toolkit.metrics.items()}
SCOPE_ADVICE = f'set default_scope to {", ".join(map(repr, [*TOOLKITS][:-1]))} or {[*TOOLKITS][-1]!r}'


def install_advice(scope: str) -> str:
    """Return the end of an error message about a toolkit that is not installed.

    Example:
        >>> install_advice('mmseg')
        'install onedl-mmsegmentation or mmsegmentation'
    """
    if scope not in TOOLKITS:
        return f'the toolkits are {", ".join(TOOLKITS)}'
    return f'install {" or ".join(TOOLKITS[scope].distributions)}'


def keeps_bgr(preprocessor: Any) -> bool:
    """Return whether a data preprocessor leaves images in BGR, the order in which the toolkits load them."""
    return any(getattr(preprocessor, toolkit.rgb_switch, True) is False for toolkit in TOOLKITS.values())

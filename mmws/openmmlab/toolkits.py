"""Table of the toolkits: a row for each says what differs from one to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ['HEADS', 'METRICS', 'TOOLKITS', 'Metric', 'Toolkit', 'keeps_bgr']


@dataclass(frozen=True)
class Metric:
    """A metric of a toolkit's evaluator.

    Args:
        name: in ``summary.json``.
        label: on the axis of a figure.
        best: the largest value it can have in the log, 1 or 100.
    """

    name: str
    label: str
    best: float = 1


@dataclass(frozen=True)
class Toolkit:
    """One toolkit on mmengine.

    Args:
        scope: its import name, and its scope in the registries.
        distributions: its names on PyPI, OneDL's first.
        heads: the paths in ``model`` of the heads whose ``num_classes`` has to match the dataset.
        metrics: by the names in the log.
        rgb_switch: the attribute of its data preprocessor that is False where images stay in BGR.
    """

    scope: str
    distributions: tuple[str, ...]
    heads: tuple[str, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    rgb_switch: str = '_channel_conversion'


TOOLKITS = {toolkit.scope: toolkit for toolkit in (
    Toolkit('mmdet', ('onedl-mmdetection', 'mmdet'), ('bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head'),
            {'coco/bbox_mAP': Metric('box_ap', 'box AP'), 'coco/segm_mAP': Metric('mask_ap', 'mask AP')}),
    Toolkit('mmseg', ('onedl-mmsegmentation', 'mmsegmentation'), ('decode_head', 'auxiliary_head'),
            {'mIoU': Metric('miou', 'mean IoU', best=100)}, 'channel_conversion'),
    Toolkit('mmpretrain', ('onedl-mmpretrain', 'mmpretrain'), rgb_switch='to_rgb'),
)}
"""To support another toolkit, such as mmpose, add a row."""

HEADS = tuple(head for toolkit in TOOLKITS.values() for head in toolkit.heads)
METRICS = {key: metric for toolkit in TOOLKITS.values() for key, metric in toolkit.metrics.items()}


def keeps_bgr(preprocessor: Any) -> bool:
    """Return whether a data preprocessor hands images on in BGR, the order in which the toolkits load them."""
    return any(getattr(preprocessor, toolkit.rgb_switch, True) is False for toolkit in TOOLKITS.values())

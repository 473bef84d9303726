"""Check of segmentation maps, which mmseg does not check."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from mmws.errors import WSError
from mmws.openmmlab.registry import TRANSFORMS

__all__ = ['CheckLabels']


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):  # type: ignore[misc]
    """Refuse a segmentation map with labels out of range; add it after ``LoadAnnotations``.

    mmseg silently leaves such pixels out of the IoU. In training they cause an index error without a file name.

    Args:
        num_classes: valid labels are 0 to ``num_classes - 1``.
        ignore_index: the label of ignored pixels.

    Example:
        >>> CheckLabels(num_classes=2)(dict(gt_seg_map=np.array([[0, 1, 255]])))['gt_seg_map'].shape
        (1, 3)
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``results`` unchanged; they may lack a map, for example in ``inference_model``.

        Raises:
            WSError: if ``results['gt_seg_map']`` has labels out of range.
        """
        labels = np.unique(results.get('gt_seg_map', ()))
        wrong = labels[(labels >= self.num_classes) & (labels != self.ignore_index)]
        if wrong.size:
            path = results.get('seg_map_path', 'a segmentation map')
            raise WSError(f'{path} has the labels {wrong.tolist()}; expected 0 to {self.num_classes - 1}, '
                          f'or {self.ignore_index} for ignored pixels')
        return results

"""A check of segmentation maps, which mmseg takes as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from mmws.errors import WSError
from mmws.openmmlab.registry import TRANSFORMS

__all__ = ['CheckLabels']


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):  # type: ignore[misc]
    """Refuse a segmentation map with labels out of range; goes after ``LoadAnnotations``.

    mmseg leaves such pixels out of the IoU without a word, and in training they end in an index error that names no
    file (on CUDA, in an assert that ends the process).

    Args:
        num_classes: labels from 0 to ``num_classes - 1`` are right.
        ignore_index: the label of pixels that do not count.

    Example:
        >>> CheckLabels(num_classes=2)(dict(gt_seg_map=np.array([[0, 1, 255]])))['gt_seg_map'].shape
        (1, 3)
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``results`` as they came; without a map, as in ``inference_model``, there is nothing to check.

        Raises:
            WSError: if ``results['gt_seg_map']`` has labels out of range.
        """
        labels = np.unique(results.get('gt_seg_map', ()))
        wrong = labels[(labels >= self.num_classes) & (labels != self.ignore_index)]
        if wrong.size:
            path = results.get('seg_map_path', 'a segmentation map')
            raise WSError(f'{path} has the labels {wrong.tolist()}; expected '
                          f'0 to {self.num_classes - 1}, or {self.ignore_index} for pixels that do not count')
        return results

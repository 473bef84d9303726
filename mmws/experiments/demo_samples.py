"""Random annotations for mmdet and mmseg."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

__all__ = ['demo_samples']


def demo_samples(scope: str, size: tuple[int, int], num_classes: int, boxes: int = 3) -> list[Any]:
    """Return the data samples of one random image, with every kind of annotation that models of the toolkit read.

    ``scope`` is ``'mmdet'`` or ``'mmseg'``, ``size`` height and width in pixels.
    """
    sample = _segmentation_sample(size, num_classes) if scope == 'mmseg' else _detection_sample(
        size, num_classes, boxes)
    sample.set_metainfo({'img_shape': size, 'ori_shape': size, 'pad_shape': size, 'batch_input_shape': size})
    return [sample]


def _segmentation_sample(size: tuple[int, int], num_classes: int) -> Any:
    label = PixelData(data=torch.randint(num_classes, (1, *size)))
    return SegDataSample(gt_sem_seg=label, gt_edge_map=label)


def _detection_sample(size: tuple[int, int], num_classes: int, boxes: int) -> Any:
    sample = demo_mm_inputs(1, (3, *size), num_items=[boxes], with_mask=True, with_semantic=True)['data_samples'][0]
    sample.gt_instances.labels %= num_classes
    sample.gt_sem_seg.sem_seg %= num_classes
    sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes)
    return sample

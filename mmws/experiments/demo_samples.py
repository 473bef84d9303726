"""Random inputs with annotations for the models of the toolkits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, Tuple

import torch
from mmengine.structures import InstanceData, LabelData, PixelData

__all__ = ['demo_batches', 'demo_samples']

Batch = Tuple[Any, Any]  # inputs, data samples


def demo_batches(model: Any, scope: str, size: tuple[int, int], num_classes: int) -> Iterator[Batch]:
    """Yield random batches for ``model``, of one image or clip, with every kind of annotation that its toolkit reads.

    Args:
        model: a model of the toolkit.
        scope: the name of the toolkit. For an unknown one, the batch is an image without annotations.
        size: height and width in pixels.
        num_classes: upper bound of the labels.
    """
    if scope in _BATCHES:
        yield from _BATCHES[scope](model, size, num_classes)
    else:
        yield torch.randn(1, 3, *size), [None]


def demo_samples(scope: str, size: tuple[int, int], num_classes: int, boxes: int = 3) -> list[Any]:
    """Return the data samples of one random image for mmdet, mmrotate or mmseg."""
    if scope == 'mmseg':
        label = PixelData(data=torch.randint(num_classes, (1, *size)))
        return [_with_size(import_module('mmseg.structures').SegDataSample(gt_sem_seg=label, gt_edge_map=label), size)]
    kinds = {'use_box_type': True} if scope == 'mmrotate' else {'with_mask': True}  # no masks of rotated boxes
    sample = import_module(f'{scope}.testing').demo_mm_inputs(
        1, (3, *size), num_items=[boxes], with_semantic=True, **kinds)['data_samples'][0]
    sample.gt_instances.labels %= num_classes
    sample.gt_sem_seg.sem_seg %= num_classes
    sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes)
    return [_with_size(sample, size)]


def _with_size(sample: Any, size: tuple[int, int]) -> Any:
    sample.set_metainfo({'img_shape': size, 'ori_shape': size, 'pad_shape': size, 'batch_input_shape': size})
    return sample


def _image(scope: str, model: Any, size: tuple[int, int], num_classes: int) -> Iterator[Batch]:
    yield torch.randn(1, 3, *size), demo_samples(scope, size, num_classes)


def _detection(model: Any, size: tuple[int, int], num_classes: int) -> Iterator[Batch]:
    samples = demo_samples('mmdet', size, num_classes)
    instances = samples[0].gt_instances
    instances.pairwise_masks = torch.ones(len(instances), 8, size[0] // 4, size[1] // 4)  # of BoxInst
    yield torch.randn(1, 3, *size), samples
    samples = [sample for _ in range(2) for sample in demo_samples('mmdet', size, num_classes)]
    for label, sample in enumerate(samples):
        del sample.gt_instances.masks  # RTMDet has no use for them
        sample.gt_label = LabelData(label=torch.tensor([label]))  # of re-identification, which compares images
    yield torch.randn(2, 3, *size), samples
    video = import_module('mmdet.testing').demo_track_inputs(
        image_shapes=(3, *size), num_items=[3], num_classes=num_classes, with_mask=True)
    yield torch.randn(1, 2, 3, *size), video['data_samples']


def _classification(model: Any, size: tuple[int, int], num_classes: int) -> Iterator[Batch]:
    def sample() -> Any:
        return _with_size(import_module('mmpretrain.structures').DataSample(), size)

    labelled, masked = sample().set_gt_label(0), sample()
    patch = getattr(getattr(getattr(model, 'backbone', None), 'patch_embed', None), 'projection', None)  # of ViTs
    masked.mask = torch.randint(2, [length // (patch.stride[0] if patch else length) for length in size])  # 1: hidden
    loss = getattr(getattr(model, 'head', None), 'loss_module', None)
    crops = sum(getattr(loss, 'num_crops', [2]))  # of self-supervised training; SwAV has several sizes
    views = [torch.randn(1, 3, *size) for _ in range(crops)]
    yield views[0], [labelled]
    yield views[0], [masked]
    yield views, [masked]
    yield [views[0], torch.randn(1, 3, size[0] // 2, size[1] // 2)], [masked]  # the target has its own resolution
    yield views[0], [sample().set_gt_score(torch.ones(num_classes))]


def _pose(model: Any, size: tuple[int, int], num_classes: int) -> Iterator[Batch]:
    testing, transforms = import_module('mmpose.testing'), import_module('mmpose.datasets.transforms')
    codec, head = getattr(model.head, 'decoder', None), vars(model.head)
    if codec is not None:  # it makes the labels, for images of its own size
        data = testing.get_coco_sample(codec.input_size[::-1], with_img_mask=True)
        joints = next((head[name] for name in ('num_keypoints', 'num_joints', 'out_channels') if name in head), 17)
        for key in ('keypoints', 'keypoints_visible'):
            data[key] = data[key].take(range(joints), axis=1, mode='wrap')
        options = {key: data.get(key) for key in codec.auxiliary_encode_keys}
        data.update(codec.encode(keypoints=data['keypoints'], keypoints_visible=data['keypoints_visible'], **options))
        for table in ('field_mapping_table', 'instance_mapping_table', 'label_mapping_table'):
            data.update({table: getattr(codec, table)} if getattr(codec, table) else {})
        packed = transforms.PackPoseInputs()({**data, 'input_size': codec.input_size, 'flip_indices': [*range(joints)]})
        yield torch.randn(1, *packed['inputs'].shape), [packed['data_samples']]
    packed = testing.get_packed_inputs(1, img_shape=size, input_size=size[::-1])
    yield torch.randn(1, 3, *size), packed['data_samples']


def _action(model: Any, size: tuple[int, int], num_classes: int) -> Iterator[Batch]:
    sample = import_module('mmaction.structures').ActionDataSample()
    sample.set_metainfo({'num_classes': num_classes, 'img_shape': size, 'img_key': 'video,1'})
    boxes = torch.tensor([[10.0, 10, 90, 90], [30, 20, 80, 100]])
    sample.proposals = InstanceData(bboxes=boxes)  # of detectors, each box with any number of actions
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.ones(2, num_classes))
    for set_label in ('set_gt_label', 'set_gt_labels'):  # of mmaction 1.2 and 1.1
        if hasattr(sample, set_label):
            getattr(sample, set_label)(0)
    shapes = [(1, 1, 3, 8, *size), (1, 1, 3, 16, *size), (1, 1, 3, 16, 112, 112), (1, 8, 3, *size), (1, 16, 3, *size),
              (1, 1, 2, 16, 17, 3), (1, 1, 17, 16, 56, 56), (1, 1, 1, *size)]
    if hasattr(model, 'roi_head'):
        shapes = [(1, 3, 32, *size)]
    for shape in shapes:  # clips, frames, a skeleton as points and as heatmaps, sound
        yield torch.randn(shape), [sample]


def _detection_3d(model: Any, size: tuple[int, int], num_classes: int) -> Iterator[Batch]:
    testing = import_module('mmdet3d.testing')
    if size != (128, 128):
        return  # the networks take images of any size; the points are what differs
    for kind, features, sides in (('lidar', 4, 7), ('lidar', 5, 9), ('depth', 4, 7), ('depth', 6, 7), ('cam', 4, 9)):
        data = testing.create_detector_inputs(
            num_points=5000, points_feat_dim=features, with_img=True, img_size=size, num_classes=num_classes,
            gt_bboxes_dim=sides, with_pts_semantic_mask=True, bboxes_3d_type=kind)
        boxes = data['data_samples'][0].gt_instances_3d
        boxes.centers_2d, boxes.depths = torch.rand(len(boxes), 2) * min(size), torch.rand(len(boxes)) + 1
        batch = model.data_preprocessor(data, training=False)
        yield batch['inputs'], batch['data_samples']


_BATCHES: dict[str, Callable[[Any, tuple[int, int], int], Iterator[Batch]]] = {
    'mmdet': _detection, 'mmyolo': _detection, 'mmrotate': partial(_image, 'mmrotate'),
    'mmseg': partial(_image, 'mmseg'), 'mmpretrain': _classification, 'mmpose': _pose, 'mmaction': _action,
    'mmdet3d': _detection_3d}

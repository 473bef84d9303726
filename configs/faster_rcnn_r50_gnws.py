"""Faster R-CNN, ResNet-50, GroupNorm + Weight Standardization, as its authors trained it on COCO.

arXiv 1903.10520; joe-siyuan-qiao/maskrcnn-benchmark. Box AP 39.36, theirs. Standardized are the backbone, the FPN and
the box head; the RPN is plain. The GN baseline: `model.type=FasterRCNN` (its ImageNet weights:
`model.backbone.init_cfg.checkpoint=open-mmlab://contrib/resnet50_gn`).
"""
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/coco_gnws.py',
]

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    type='mmws.FasterRCNN',
    backbone=dict(norm_cfg=norm_cfg, init_cfg=dict(checkpoint='jhu://resnet50_gn_ws')),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg)))
train_dataloader = dict(batch_size=1)
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

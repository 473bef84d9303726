"""Faster R-CNN with ResNet-50, GroupNorm + Weight Standardization: the authors' recipe on COCO.

Schedule: 12 epochs, SGD, learning rate 0.01 at 8 images per step, 1 per GPU. Weights: open-mmlab://jhu/resnet50_gn_ws.
Box AP 39.36, reported by the authors: README of joe-siyuan-qiao/maskrcnn-benchmark (arXiv 1903.10520).
Standardized: the backbone, the FPN and the box head. The RPN has no norm and stays plain.
GN baseline: `model.type=FasterRCNN model.backbone.init_cfg.checkpoint=open-mmlab://contrib/resnet50_gn`.
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
    backbone=dict(norm_cfg=norm_cfg, init_cfg=dict(checkpoint='open-mmlab://jhu/resnet50_gn_ws')),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg)))
train_dataloader = dict(batch_size=1)
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

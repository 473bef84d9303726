"""Mask R-CNN with ResNet-50, GroupNorm + Weight Standardization: the authors' recipe on COCO.

Schedule: 24 epochs, SGD, learning rate 0.01 at 8 images per step, 1 per GPU. Weights: open-mmlab://jhu/resnet50_gn_ws.
Box / mask AP 40.81 / 36.51, reported by the authors: README of joe-siyuan-qiao/maskrcnn-benchmark (arXiv 1903.10520).
Standardized: the backbone, the FPN, the box head and the mask head. The RPN has no norm and stays plain.
GN baseline: `model.type=MaskRCNN model.backbone.init_cfg.checkpoint=open-mmlab://contrib/resnet50_gn`.
"""
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/coco_gnws.py',
]

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    type='mmws.MaskRCNN',
    backbone=dict(norm_cfg=norm_cfg, init_cfg=dict(checkpoint='open-mmlab://jhu/resnet50_gn_ws')),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))
train_dataloader = dict(batch_size=1)
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, milestones=[20, 23], gamma=0.1),
]
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

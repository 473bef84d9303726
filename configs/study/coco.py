"""Faster R-CNN with ResNet-50 of the study on COCO: the authors' network with BatchNorm, which the prefix replaces.

For `configs/study/coco.yaml`. `tools/study.py` sets norm, ImageNet weights, learning rate, batch size, steps and seed.
"""
_base_ = '../faster_rcnn_r50_gnws.py'

norm_cfg = dict(_delete_=True, type='BN')
model = dict(
    backbone=dict(norm_cfg=norm_cfg, norm_eval=False),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg)))

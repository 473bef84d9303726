"""Faster R-CNN with ResNeXt-50 32x4d, GroupNorm + Weight Standardization: the authors' recipe on COCO.

Schedule: 12 epochs, SGD, learning rate 0.01 at 8 images per step, 1 per GPU.
Weights: open-mmlab://jhu/resnext50_32x4d_gn_ws.
Box AP 40.25, reported by the authors: README of joe-siyuan-qiao/maskrcnn-benchmark (arXiv 1903.10520).
GN baseline: `model.type=FasterRCNN model.backbone.init_cfg.checkpoint=open-mmlab://jhu/resnext50_32x4d_gn`.
"""
_base_ = './faster_rcnn_r50_gnws.py'

model = dict(
    backbone=dict(
        type='ResNeXt', groups=32, base_width=4, init_cfg=dict(checkpoint='open-mmlab://jhu/resnext50_32x4d_gn_ws')))

"""Mask R-CNN with ResNeXt-101 32x4d, GroupNorm + Weight Standardization: the authors' recipe on COCO.

Schedule: 24 epochs, SGD, learning rate 0.005 at 4 images per step, 1 per GPU.
Weights: open-mmlab://jhu/resnext101_32x4d_gn_ws.
Box / mask AP 43.12 / 38.34, reported by the authors: README of joe-siyuan-qiao/maskrcnn-benchmark (arXiv 1903.10520).
GN baseline: `model.type=MaskRCNN model.backbone.init_cfg.checkpoint=open-mmlab://jhu/resnext101_32x4d_gn`.
"""
_base_ = './mask_rcnn_r50_gnws.py'

model = dict(
    backbone=dict(
        type='ResNeXt', depth=101, groups=32, base_width=4,
        init_cfg=dict(checkpoint='open-mmlab://jhu/resnext101_32x4d_gn_ws')))
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(base_batch_size=4)

"""Faster R-CNN with ResNet-101, GroupNorm + Weight Standardization: the authors' recipe on COCO.

Schedule: 12 epochs, SGD, learning rate 0.005 at 4 images per step, 1 per GPU.
Weights: open-mmlab://jhu/resnet101_gn_ws.
Box AP 41.32, reported by the authors: README of joe-siyuan-qiao/maskrcnn-benchmark (arXiv 1903.10520).
GN baseline: `model.type=FasterRCNN model.backbone.init_cfg=None`, from scratch; no RGB ImageNet weights with GN exist.
"""
_base_ = './faster_rcnn_r50_gnws.py'

model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='open-mmlab://jhu/resnet101_gn_ws')))
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(base_batch_size=4)

"""Faster R-CNN, ResNeXt-50 32x4d, GroupNorm + Weight Standardization, as its authors trained it on COCO.

Box AP 40.25, theirs. The GN baseline: `model.type=FasterRCNN` (its ImageNet weights:
`model.backbone.init_cfg.checkpoint=jhu://resnext50_32x4d_gn`).
"""
_base_ = './faster_rcnn_r50_gnws.py'

model = dict(
    backbone=dict(
        type='ResNeXt', groups=32, base_width=4, init_cfg=dict(checkpoint='jhu://resnext50_32x4d_gn_ws')))

"""Mask R-CNN, ResNeXt-101 32x4d, GroupNorm + Weight Standardization, as its authors trained it on COCO: 4 images a step.

Box / mask AP 43.12 / 38.34, theirs. The GN baseline: `model.type=MaskRCNN` (its ImageNet weights:
`model.backbone.init_cfg.checkpoint=jhu://resnext101_32x4d_gn`).
"""
_base_ = './mask_rcnn_r50_gnws.py'

model = dict(
    backbone=dict(
        type='ResNeXt', depth=101, groups=32, base_width=4, init_cfg=dict(checkpoint='jhu://resnext101_32x4d_gn_ws')))
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(base_batch_size=4)

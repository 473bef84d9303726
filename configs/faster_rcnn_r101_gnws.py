"""Faster R-CNN, ResNet-101, GroupNorm + Weight Standardization, as its authors trained it on COCO: 4 images a step.

Box AP 41.32, theirs. The GN baseline: `model.type=FasterRCNN` (there are no RGB ImageNet
weights with GN for it: `model.backbone.init_cfg=None` trains it from scratch).
"""
_base_ = './faster_rcnn_r50_gnws.py'

model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='jhu://resnet101_gn_ws')))
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(base_batch_size=4)

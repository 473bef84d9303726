"""FCOS with ResNet-50, GroupNorm + Weight Standardization, on COCO.

mmdet's stock config, whose head has GroupNorm: 12 epochs, SGD, learning rate 0.005 at 8 images per step, 1 per GPU.
Weights: open-mmlab://jhu/resnet50_gn_ws. They need RGB input; the stock weights are caffe-style and need BGR.
The head's weights are standardized once for its five levels. No published result.
GN baseline: `model.type=FCOS model.backbone.init_cfg.checkpoint=open-mmlab://contrib/resnet50_gn`.
"""
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    type='mmws.FCOS',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        norm_cfg=dict(_delete_=True, **norm_cfg),
        style='pytorch',
        init_cfg=dict(checkpoint='open-mmlab://jhu/resnet50_gn_ws')),
    neck=dict(norm_cfg=norm_cfg))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.005))  # stock: 0.01 at 16 images
auto_scale_lr = dict(enable=False, base_batch_size=8)
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

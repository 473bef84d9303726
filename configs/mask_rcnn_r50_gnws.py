"""Mask R-CNN, ResNet-50, GroupNorm + Weight Standardization, as its authors trained it on COCO.

arXiv 1903.10520; joe-siyuan-qiao/maskrcnn-benchmark, configs/weight_standardization: 20-23-24 epochs, box / mask AP
40.81 / 36.51 (theirs). Standardized are the backbone, the FPN, the box head and the mask head; the RPN is plain.
"""
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
]

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    type='mmws.MaskRCNN',
    backbone=dict(
        norm_cfg=norm_cfg, init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://jhu/resnet50_gn_ws')),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))

# one image on each of 8 GPUs; `--auto-scale-lr` fits the learning rate to another number
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(enable=False, base_batch_size=8)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'bias': dict(lr_mult=2, decay_mult=0)}))  # of norms too
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[20, 23], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

"""Mask R-CNN with ResNet-18, GroupNorm + Weight Standardization, for nuclei in microscope images: ``make demo DATA=nuclei``.

Schedule: 1,200 steps, SGD, learning rate 0.01 at 1 image per step, from scratch. The network is the one of the digits'
config. Box AP 0.374, mask AP 0.400, one seed. With BatchNorm (``--cfg-options model.ws.norm=keep model.ws.weight=plain``) 0.105
and 0.097.
"""
_base_ = '../demo/mask_rcnn_r18_gnws_digits.py'

max_iters = 1200
model = dict(roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)))

data_root = 'data/nuclei/'
img_scale = (256, 256)
metainfo = dict(_delete_=True, classes=('nucleus', ), palette=[(220, 20, 60)])
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_iters=max_iters, val_interval=200)
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, end=max_iters, eta_min=1e-4),
]
default_hooks = dict(checkpoint=dict(interval=200))
work_dir = 'work_dirs/demo-nuclei'

"""DeepLabv3 with ResNet-18, GroupNorm + Weight Standardization, for the streets of CamVid: ``make demo-seg DATA=camvid``.

Schedule: 1,200 steps, SGD, learning rate 0.02 at 1 image per step, from scratch. The network is the one of the digits'
config. Mean IoU 0.3925, one seed. For BatchNorm: ``--cfg-options model.ws.norm=keep model.ws.weight=plain
train_dataloader.batch_size=2``; with one image its first step fails.
"""
_base_ = '../demo/deeplabv3_r18_gnws_digits.py'

max_iters = 1200
img_scale = (240, 180)
model = dict(
    ws=dict(num_groups=16),  # a stock config has one number for all norms; the model can then be folded into one
    data_preprocessor=dict(size=img_scale[::-1]),
    decode_head=dict(ignore_index=11, loss_decode=dict(class_weight=None)),  # label 11 is for unlabelled pixels
    auxiliary_head=dict(ignore_index=11))

data_root = 'data/camvid'
metainfo = dict(
    _delete_=True,
    classes=('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist'),
    palette=[[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
             [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='mmws.CheckLabels', num_classes=11, ignore_index=11),
    dict(type='Resize', scale=img_scale),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=img_scale),
    dict(type='LoadAnnotations'),
    dict(type='mmws.CheckLabels', num_classes=11, ignore_index=11),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ignore_index=11)
test_evaluator = val_evaluator

train_cfg = dict(max_iters=max_iters, val_interval=200)
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='PolyLR', power=0.9, eta_min=0, by_epoch=False, begin=200, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=200))
work_dir = 'work_dirs/demo-seg-camvid'

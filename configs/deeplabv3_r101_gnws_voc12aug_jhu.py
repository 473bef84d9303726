"""DeepLabv3 with ResNet-101, GroupNorm + Weight Standardization: the authors' network and recipe on VOC 2012 + aug.

Network: output stride 16, 256 channels, rates 6/12/18, no auxiliary head, no dropout.
Schedule: 50 epochs, SGD, learning rate 0.007 at 16 images per step: 4 per GPU, so 4 GPUs. The number of steps is for
16 images too: for another number of GPUs, set `train_dataloader.batch_size`, so that the two give 16.
Weights: open-mmlab://jhu/resnet101_gn_ws. The test uses whole images, without crops.
mIoU 77.20 with GN+WS and 76.49 with BatchNorm, reported by the authors: README of chenxi116/DeepLabv3.pytorch
(arXiv 1903.10520).
Difference: the authors draw the scale from a continuous logarithmic range; this config draws one of 33 steps in it.
"""
_base_ = [__import__('mmws').stock_config(f'mmseg::_base_/{part}.py') for part in (
    'models/deeplabv3_r50-d8', 'datasets/pascal_voc12_aug', 'default_runtime')]

norm_cfg = dict(type='GN', num_groups=32)
crop_size = (513, 513)
model = dict(
    type='mmws.EncoderDecoder',
    pretrained='open-mmlab://jhu/resnet101_gn_ws',
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=crop_size)),  # pads after the normalization
    backbone=dict(
        type='ResNet', depth=101, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), norm_cfg=norm_cfg),
    decode_head=dict(
        type='mmws.DeepLabV3Head', channels=256, dilations=(1, 6, 12, 18), dropout_ratio=0, num_classes=21,
        align_corners=True, norm_cfg=norm_cfg),
    auxiliary_head=None)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='mmws.CheckLabels', num_classes=21),
    dict(type='RandomChoice', transforms=[
        [dict(type='Resize', scale_factor=2**(step / 16), keep_ratio=True)] for step in range(-16, 17)]),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='mmws.CheckLabels', num_classes=21),
    dict(type='PackSegInputs'),
]
_base_.dataset_train.pipeline = train_pipeline
_base_.dataset_aug.pipeline = train_pipeline
train_dataloader = dict(batch_size=4, dataset=dict(datasets=[_base_.dataset_train, _base_.dataset_aug]))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

auto_scale_lr = dict(enable=False, base_batch_size=16)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=10582 * 50 // 16, val_interval=10582 * 5 // 16)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.007, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=train_cfg['max_iters'], by_epoch=False)]
default_hooks = dict(
    guard=dict(type='mmws.GuardHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=train_cfg['val_interval']),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))

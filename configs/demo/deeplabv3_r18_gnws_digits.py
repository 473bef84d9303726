"""DeepLabv3 with ResNet-18, GroupNorm + Weight Standardization, for handwritten digits on photos: ``make demo-seg``.

Schedule: 5,000 steps, SGD, learning rate 0.1 at 1 image per step, from scratch. The results in docs/evidence.md are from
this config, with one seed. With BatchNorm (``--cfg-options model.type=EncoderDecoder``) the first step fails: with one
image, the image pool has a single value per channel.
"""
_base_ = [__import__('mmws').stock_config(f'mmseg::_base_/{part}.py') for part in (
    'models/deeplabv3_r50-d8', 'default_runtime')]

max_iters = 5000
norm_cfg = dict(type='BN')  # mmws.EncoderDecoder replaces it
model = dict(
    type='mmws.EncoderDecoder',
    pretrained=None,
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        depth=18, base_channels=32, stem_channels=32, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=256, channels=128, dilations=(1, 2, 4, 6), num_classes=11, norm_cfg=norm_cfg, dropout_ratio=0,
        loss_decode=dict(class_weight=[0.2] + [1.0] * 10)),  # 9 of 10 pixels are background
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11, norm_cfg=norm_cfg, dropout_ratio=0))

dataset_type = 'BaseSegDataset'
data_root = 'data/digits'
metainfo = dict(classes=('background', *'0123456789'), palette=[
    [0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48], [145, 30, 180],
    [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212]])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='mmws.CheckLabels', num_classes=11),
    dict(type='Resize', scale=(128, 128)),
    dict(type='PackSegInputs'),
]
test_pipeline = [  # mmseg's `inference_model` reads it by this name
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128)),
    dict(type='LoadAnnotations'),
    dict(type='mmws.CheckLabels', num_classes=11),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type, data_root=data_root, metainfo=metainfo,
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'), pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type, data_root=data_root, metainfo=metainfo,
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

auto_scale_lr = dict(enable=False, base_batch_size=1)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='PolyLR', power=0.9, eta_min=0, by_epoch=False, begin=200, end=max_iters),
]
default_hooks = dict(
    guard=dict(type='mmws.GuardHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook', interval=1))
work_dir = 'work_dirs/demo-seg'
randomness = dict(seed=0)

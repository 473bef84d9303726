"""DeepLabv3 of the study on real images: the demo's network with auxiliary head, from scratch, CamVid at 160 x 120.

`tools/study.py` sets norm, learning rate, batch size, number of steps and seed. Without it, this config trains GN+WS.
"""
_base_ = '../camvid/deeplabv3_r18_gnws_camvid.py'

model = dict(
    ws=dict(num_groups=8),  # with 32 channels, 32 groups would be InstanceNorm
    data_preprocessor=dict(size=(120, 160)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(160, 120)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 120)),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
work_dir = 'work_dirs/study/camvid'

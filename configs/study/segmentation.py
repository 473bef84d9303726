"""DeepLabv3 of the study on small batches: the demo's network with auxiliary head, from scratch, digits at 96 pixels.

`tools/study.py` sets norm, learning rate, batch size, number of steps and seed. Without it, this config trains GN+WS.
"""
_base_ = '../demo/deeplabv3_r18_gnws_digits.py'

model = dict(
    ws=dict(num_groups=8),  # with 32 channels, 32 groups would be InstanceNorm
    data_preprocessor=dict(size=(96, 96)))

data_root = 'data/study/digits'
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
test_pipeline = train_pipeline
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = train_dataloader
test_dataloader = val_dataloader
work_dir = 'work_dirs/study/segmentation'

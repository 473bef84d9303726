"""DeepLabv3 of the micro-batch study: ResNet-18 of 16 channels, no auxiliary head, from scratch, digits at 96 pixels.

`tools/study.py` sets the norm, the rate, the images a step, the steps and the seed; by itself this trains GN+WS.
"""
_base_ = '../demo/deeplabv3_r18_gnws_digits.py'

model = dict(
    ws=dict(num_groups=8),  # 32, of 16 channels, would be InstanceNorm
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(base_channels=16, stem_channels=16),
    decode_head=dict(in_channels=128, channels=64),
    auxiliary_head=None)

load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
loader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='data/study/digits', pipeline=load))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
work_dir = 'work_dirs/study/segmentation'

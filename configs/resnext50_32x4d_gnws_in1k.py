"""ResNeXt-50 32x4d on ImageNet with GroupNorm + Weight Standardization, as its authors trained it: 128 images an update.

Top-1 / top-5 error 22.71 / 6.38, theirs. See resnet50_gnws_in1k.py.
"""
_base_ = './resnet50_gnws_in1k.py'

model = dict(backbone=dict(type='ResNeXt', groups=32, width_per_group=4))
optim_wrapper = dict(accumulative_counts=4)
param_scheduler = dict(milestones=[30, 60, 90])
train_cfg = dict(max_epochs=100)

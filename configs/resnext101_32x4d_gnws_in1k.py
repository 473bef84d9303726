"""ResNeXt-101 32x4d with GroupNorm + Weight Standardization: the authors' recipe on ImageNet.

Schedule: 100 epochs, SGD, learning rate 0.1 at 128 images per update: 32 per step, 4 accumulated steps.
Top-1 / top-5 error 21.80 / 6.03, reported by the authors. Source and requirements: resnet50_gnws_in1k.py.
"""
_base_ = './resnet50_gnws_in1k.py'

model = dict(backbone=dict(type='ResNeXt', depth=101, groups=32, width_per_group=4))
optim_wrapper = dict(accumulative_counts=4)
param_scheduler = dict(milestones=[30, 60, 90])
train_cfg = dict(max_epochs=100)

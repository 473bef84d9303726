"""ResNet-101 on ImageNet with GroupNorm + Weight Standardization, as its authors trained it: 128 images an update.

Top-1 / top-5 error 22.10 / 6.07, theirs. See resnet50_gnws_in1k.py.
"""
_base_ = './resnet50_gnws_in1k.py'

model = dict(backbone=dict(depth=101))
optim_wrapper = dict(accumulative_counts=4)
param_scheduler = dict(milestones=[30, 60, 90])
train_cfg = dict(max_epochs=100)

"""ResNet-50 on ImageNet with GroupNorm + Weight Standardization, as its authors trained it, to make a backbone of one's own.

arXiv 1903.10520; joe-siyuan-qiao/pytorch-classification. Top-1 / top-5 error 23.72 / 6.99, theirs. 256 images an update,
simulated by accumulating the gradient of micro-batches: with GN+WS that is the same. For another number of GPUs or images
keep batch_size x GPUs x accumulative_counts at 256. Needs mmpretrain.
"""
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(type='mmws.ImageClassifier', backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
optim_wrapper = dict(accumulative_counts=8)
param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

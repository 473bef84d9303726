"""ResNet-50 with GroupNorm + Weight Standardization: the authors' recipe on ImageNet. It makes a pretrained backbone.

Schedule: 90 epochs, SGD, learning rate 0.1 at 256 images per update: 32 per step, 8 accumulated steps.
Accumulated steps give the same result as one large batch: GN+WS uses no batch statistics. For other numbers of GPUs
or images, keep batch_size x GPUs x accumulative_counts at 256, or use `--auto-scale-lr`: mmengine counts the images of a
step, 32, not those of an update. Trains from scratch. Needs mmpretrain.
Top-1 / top-5 error 23.72 / 6.99, reported by the authors: README of joe-siyuan-qiao/pytorch-classification
(arXiv 1903.10520).
"""
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(type='mmws.ImageClassifier', backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
optim_wrapper = dict(accumulative_counts=8)
param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

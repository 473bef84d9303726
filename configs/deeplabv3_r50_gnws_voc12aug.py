"""DeepLabv3 with ResNet-50, GroupNorm + Weight Standardization, on VOC 2012 + aug.

mmseg's stock config deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512.py, in its GN+WS form: 40,000 steps, SGD, learning
rate 0.01 at 16 images per step: 4 per GPU, so 4 GPUs.
Weights: open-mmlab://jhu/resnet50_gn_ws. They are for the v1 stem, which replaces the stock v1c stem. No published result.
"""
_base_ = __import__('mmws').stock_config('mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512.py')

model = dict(
    type='mmws.EncoderDecoder',
    pretrained='open-mmlab://jhu/resnet50_gn_ws',
    backbone=dict(type='ResNet'))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

"""DeepLabv3, ResNet-50, on VOC 2012 + aug: mmseg's stock config with GroupNorm + Weight Standardization.

One key, and the backbone for which GN+WS weights are published: the v1 stem in place of stock's v1c.
The BatchNorm original: mmseg's deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512.py.
"""
_base_ = __import__('mmws').stock_config('mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512.py')

model = dict(
    type='mmws.EncoderDecoder',
    pretrained='jhu://resnet50_gn_ws',
    backbone=dict(type='ResNet'))
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

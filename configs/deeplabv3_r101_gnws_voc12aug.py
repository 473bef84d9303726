"""DeepLabv3, ResNet-101, on VOC 2012 + aug: mmseg's stock config with GroupNorm + Weight Standardization.

mmseg reports mIoU 77.92 for its BatchNorm original, deeplabv3_r101-d8_4xb4-40k_voc12aug-512x512.py.
"""
_base_ = './deeplabv3_r50_gnws_voc12aug.py'

model = dict(pretrained='jhu://resnet101_gn_ws', backbone=dict(depth=101))

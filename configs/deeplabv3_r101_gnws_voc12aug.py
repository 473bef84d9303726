"""DeepLabv3 with ResNet-101, GroupNorm + Weight Standardization, on VOC 2012 + aug.

Schedule: that of deeplabv3_r50_gnws_voc12aug.py, 16 images per step: 4 per GPU, so 4 GPUs. Weights:
open-mmlab://jhu/resnet101_gn_ws. No published result with GN+WS; mmseg reports mIoU 77.92 for its BatchNorm original,
deeplabv3_r101-d8_4xb4-40k_voc12aug-512x512.py.
"""
_base_ = './deeplabv3_r50_gnws_voc12aug.py'

model = dict(pretrained='open-mmlab://jhu/resnet101_gn_ws', backbone=dict(depth=101))

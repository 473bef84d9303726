"""Faster R-CNN of the study on nuclei with ResNet-50 instead of ResNet-18, from scratch."""
_base_ = './nuclei.py'

model = dict(backbone=dict(depth=50), neck=dict(in_channels=[64, 128, 256, 512]))
work_dir = 'work_dirs/study/nuclei_r50'

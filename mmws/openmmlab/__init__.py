"""Integration with OpenMMLab: registry, pretrained weights, stock configs, hooks and the table of toolkits.

May import torch, numpy, mmengine, mmcv, mmseg, :mod:`mmws.errors` and the packages conversion, checkpoint, layers and
ops of mmws.
"""

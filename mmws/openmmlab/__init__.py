"""Integration with OpenMMLab: registry, pretrained weights, stock configs, hooks and the table of toolkits.

May import mmengine, mmcv and the packages conversion, checkpoint, layers and ops of mmws.
"""

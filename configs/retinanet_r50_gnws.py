"""RetinaNet with ResNet-50, GroupNorm + Weight Standardization, on COCO.

mmdet's stock network with the authors' optimizer: 12 epochs, SGD, learning rate 0.01 at 8 images per step, 1 per GPU.
The published GN+WS weights replace the backbone's stock weights. The head's weights are standardized once for its five
levels. No published result.
GN baseline: `model.type=RetinaNet model.backbone.init_cfg.checkpoint=open-mmlab://contrib/resnet50_gn`.
"""
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::_base_/datasets/coco_detection.py',
          'mmdet::_base_/default_runtime.py', './_base_/coco_gnws.py']

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    type='mmws.RetinaNet',
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg))
train_dataloader = dict(batch_size=1)
default_hooks = dict(guard=dict(type='mmws.GuardHook'))

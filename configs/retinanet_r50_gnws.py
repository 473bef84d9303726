"""RetinaNet, ResNet-50, GroupNorm + Weight Standardization: one head, standardized once for its five levels.

mmdet's stock config with the authors' optimizer. The backbone's stock weights give way to the published GN+WS ones.
The GN baseline: `model.type=RetinaNet model.backbone.init_cfg.checkpoint=open-mmlab://contrib/resnet50_gn`.
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

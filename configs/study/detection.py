"""Faster R-CNN of the study on small batches: ResNet-18 with 16 channels, from scratch, digits at 96 pixels.

`tools/study.py` sets norm, learning rate, batch size, number of steps and seed. Without it, this config trains GN+WS.
"""
_base_ = '../demo/mask_rcnn_r18_gnws_digits.py'

model = dict(
    type='mmws.FasterRCNN',
    ws=dict(num_groups=8),  # with 16 channels, 32 groups would be InstanceNorm
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32, num_outs=4),
    rpn_head=dict(
        in_channels=32, feat_channels=32, anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(
            type='ConvFCBBoxHead', num_shared_convs=2, num_shared_fcs=1, in_channels=32, conv_out_channels=32,
            fc_out_channels=128),
        mask_roi_extractor=None,
        mask_head=None),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=100, max_per_img=50),
        rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(max_per_img=20)))

meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96)),  # their size already; mmdet needs the scale factor
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
test_pipeline = train_pipeline
data_root = 'data/study/digits/'
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = train_dataloader
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
work_dir = 'work_dirs/study/detection'

"""Faster R-CNN of the study on real images: the network of the digits' study, from scratch, nuclei at 160 pixels.

`tools/study.py` sets norm, learning rate, batch size, number of steps and seed. Without it, this config trains GN+WS.
"""
_base_ = '../nuclei/mask_rcnn_r18_gnws_nuclei.py'

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
        mask_head=None))

img_scale = (160, 160)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=img_scale),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_pipeline = train_pipeline
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
work_dir = 'work_dirs/study/nuclei'

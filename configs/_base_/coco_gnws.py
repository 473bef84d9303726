"""The authors' optimizer and schedule for COCO: SGD 0.01 at 8 images per step, 12 epochs.

8 images are one image on each of 8 GPUs. `tools/train.py --auto-scale-lr` fits the learning rate to another number.
Source: joe-siyuan-qiao/maskrcnn-benchmark.
"""
auto_scale_lr = dict(enable=False, base_batch_size=8)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'bias': dict(lr_mult=2, decay_mult=0)}))  # norm biases too
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

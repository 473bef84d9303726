"""ResNet-18 of the study on small batches: 16 channels, three stages, from scratch, single digits at 16 pixels.

`tools/study.py` sets norm, learning rate, batch size, number of steps and seed. Without it, this config trains GN+WS.
"""
_base_ = ['mmpretrain::_base_/models/resnet18_cifar.py', 'mmpretrain::_base_/default_runtime.py']

model = dict(
    type='mmws.ImageClassifier',
    ws=dict(num_groups=8),  # with 16 channels, 32 groups would be InstanceNorm
    backbone=dict(
        num_stages=3, stem_channels=16, base_channels=16, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2, )),
    head=dict(in_channels=64))
data_preprocessor = dict(num_classes=10, mean=[80] * 3, std=[100] * 3)

dataset_type = 'CustomDataset'
data_root = 'data/study/single/'
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
test_pipeline = train_pipeline
train_dataloader = dict(
    num_workers=0, persistent_workers=False, collate_fn=dict(type='default_collate'), batch_size=64,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root + 'train', pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False, collate_fn=dict(type='default_collate'), batch_size=99,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root + 'val', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters=120, val_interval=30)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[84, 108], gamma=0.1)
auto_scale_lr = dict(enable=False, base_batch_size=64)
work_dir = 'work_dirs/study/classification'
randomness = dict(seed=0)

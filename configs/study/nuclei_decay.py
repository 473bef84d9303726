"""Faster R-CNN of the study on nuclei with the authors' rule for biases: no weight decay, twice the learning rate.

``make_optimizer`` in ``maskrcnn_benchmark/solver/build.py`` of joe-siyuan-qiao/maskrcnn-benchmark; biases of norms too.
"""
_base_ = './nuclei.py'

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'bias': dict(lr_mult=2, decay_mult=0)}))
work_dir = 'work_dirs/study/nuclei_decay'

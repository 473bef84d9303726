"""Configs and networks for several tests."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmws.openmmlab.config_tree import map_dicts
from tests.helpers.commands import REPOSITORY

DEMO = REPOSITORY / 'configs' / 'demo'


def random_model(config: Config) -> nn.Module:
    with MODELS.switch_scope_and_registry(config.default_scope):
        model = MODELS.build(config.model)
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    model.eval()
    return model


BN = {'type': 'BN'}
GN = {'type': 'GN', 'num_groups': 32}
WS = {'type': 'ConvWS'}


def with_norm(config, conv_cfg, norm_cfg):
    """Return ``config`` with these layers in each dict that has a ``norm_cfg``."""
    layers = {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg}
    return map_dicts(lambda part, _: {**part, **layers} if 'norm_cfg' in part else part, config)


SEGMENTATION = REPOSITORY / 'configs' / 'demo' / 'deeplabv3_r18_gnws_digits.py'


def small(options, digits) -> list[str]:
    """Return ``--cfg-options`` for a small backbone and a few images, without worker processes, and ``options``."""
    return [f'train_dataloader.{option}' for option in (
        'num_workers=0', 'persistent_workers=False', f'dataset.data_root={digits}')] + [
            'model.backbone.base_channels=8', 'model.backbone.stem_channels=8', *options]


HEADS = ['model.decode_head.in_channels=64', 'model.decode_head.channels=8', 'model.auxiliary_head.in_channels=32',
         'model.auxiliary_head.channels=8']

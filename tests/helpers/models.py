"""Configs and networks that several tests build."""

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

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
    """``config`` with those layers wherever it names a norm."""
    if isinstance(config, (list, tuple)):
        return type(config)(with_norm(part, conv_cfg, norm_cfg) for part in config)
    if not isinstance(config, dict):
        return config
    config = {key: with_norm(part, conv_cfg, norm_cfg) for key, part in config.items()}
    return config | {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg} if 'norm_cfg' in config else config


SEGMENTATION = REPOSITORY / 'configs' / 'demo' / 'deeplabv3_r18_gnws_digits.py'


def small(config, digits) -> list[str]:
    """``--cfg-options`` for a few small images without worker processes."""
    return [f'train_dataloader.{option}' for option in (
        'num_workers=0', 'persistent_workers=False', f'dataset.data_root={digits}')] + [
            'model.backbone.base_channels=8', 'model.backbone.stem_channels=8', *config]


HEADS = ['model.decode_head.in_channels=64', 'model.decode_head.channels=8', 'model.auxiliary_head.in_channels=32',
         'model.auxiliary_head.channels=8']

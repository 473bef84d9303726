"""Stock models for the sweep, with small inputs and without downloads. Used by ``sweep.py``."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn
from torch.overrides import TorchFunctionMode

from mmws.errors import FOREIGN_ERRORS, WSError
from mmws.openmmlab.config_tree import map_dicts
from mmws.openmmlab.stock_configs import stock_config

__all__ = ['SIZES', 'build_model', 'build_structure', 'read_model']

SIZES = (128, 128), (224, 224), (256, 128), (320, 320), (384, 384), (416, 416)
"""Height and width of the images in pixels; the others for networks that cannot process the first."""
_OVERRIDES = {'pretrained': None, 'teacher_ckpt': None, 'checkpoint': None, 'img_size': SIZES[0], 'nms_pre': 50,
              'max_per_img': 5, 'num_proposals': 5, 'use_torchvision': False, 'templates': ['{}']}
"""No weights to download, a small image, few regions to process, one text a class. The network stays the same."""
_LARGE = 2 ** 16  # number of values of a weight; smaller ones, such as the boxes of queries, keep torch's values
_SHORT = 2 ** 20  # number of values that are copied at a time


def read_model(name: str) -> tuple[str, bytes]:
    """Return the default scope of a stock config and its pickled ``model``; some stock configs raise exceptions."""
    config = Config.fromfile(stock_config(name))
    scope = config.get('default_scope') or name.partition('::')[0]
    if 'model' not in config:
        raise WSError('it has no model')
    return scope, pickle.dumps(map_dicts(_simplify, config.model.to_dict()))


def _simplify(part: dict[str, Any], path: str) -> dict[str, Any]:
    """Apply the overrides and sort the keys, so that equal models have equal pickles."""
    changed: dict[str, Any] = {key: value for key, value in _OVERRIDES.items() if key in part}
    if isinstance(part.get('img_size'), int):
        changed['img_size'] = SIZES[0][0]
    if part.get('pretrained') is True:  # timm's switch
        changed['pretrained'] = False
    if part.get('type') == 'SOLOV2Head':  # SOLO's other heads have an output channel per cell
        changed['num_grids'] = [8, 8, 4, 4, 4]
    if 'num' in part and 'Sampler' in part.get('type', ''):
        changed['num'] = 8
    if isinstance(part.get('init_cfg'), dict) and part['init_cfg'].get('type') == 'Pretrained':
        changed['init_cfg'] = None
    return dict(sorted({**part, **changed}.items(), key=lambda item: str(item[0])))


def build_structure(config: ConfigDict) -> nn.Module:
    """Build a model without values: on the meta device in the end, as not all models can be built there."""
    with _RandomValues(lambda weight: weight):
        model: nn.Module = MODELS.build(config)
    return model.to('meta')


def build_model(config: ConfigDict) -> nn.Module:
    """Build a model whose large weights have small random values from a table."""
    with _RandomValues(_fill):
        model: nn.Module = MODELS.build(config)
        for name, part in model.named_children():
            initialize = getattr(part, 'init_weights', None)
            if name != 'backbone' and initialize is not None:
                with suppress(*FOREIGN_ERRORS):  # some need the toolkit's files
                    initialize()  # else the boxes of queries have no area, and losses fail
    _fill_uninitialized_(model)
    return model


class _RandomValues(TorchFunctionMode):
    """Context with another way to fill large weights. torch's random values take long."""

    def __init__(self, fill: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fill = fill

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, '__name__', '').endswith(('uniform_', 'normal_')):  # of a tensor, and in torch.nn.init
            tensor = args[0] if args else kwargs['tensor']
            if tensor.numel() >= _LARGE:
                return self.fill(tensor)
        return function(*args, **kwargs)


@torch.no_grad()
def _fill(weight: torch.Tensor) -> torch.Tensor:
    if not weight.is_contiguous() or weight.is_meta:
        return weight.normal_(std=0.01)
    start = int(torch.randint(_SHORT, (), device='cpu'))  # else all layers have the same values
    values = _random_values()[start:start + _SHORT]
    for part in torch.split(weight.view(-1), len(values)):
        part.copy_(values[:len(part)])
    return weight


@lru_cache(maxsize=None)
def _random_values() -> torch.Tensor:
    return torch.randn(2 * _SHORT, device='cpu', generator=torch.Generator().manual_seed(0)) * 0.01


@torch.no_grad()
def _fill_uninitialized_(model: nn.Module) -> None:
    """Give small random values to parameters that a class left as allocated, as mmdet's TridentConv does."""
    for parameter in model.parameters():
        if parameter.numel() and not max(map(abs, torch.aminmax(parameter))) < 1e3:  # also true for NaN
            parameter.normal_(std=0.01)

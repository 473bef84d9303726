"""Compare the placement of WS with a real run, on a stock config of a toolkit. Used by ``tools/sweep.py``."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import distributed, nn

from mmws.conversion.convert import unsupported_reason
from mmws.conversion.dry_run import run_in_parts
from mmws.conversion.layer_types import is_batch_norm, is_conv
from mmws.conversion.output_recorder import OutputRecorder
from mmws.conversion.placement import decide
from mmws.conversion.swap_convs import standardized_class, standardizes_itself
from mmws.errors import FOREIGN_ERRORS, WSError
from mmws.experiments.demo_samples import demo_samples
from mmws.experiments.worker import prepare_worker
from mmws.openmmlab.config_tree import dicts_in, map_dicts
from mmws.openmmlab.stock_configs import stock_config
from mmws.ops.torch_compat import BatchNorm

__all__ = ['Row', 'check_placement', 'prepare_sweep_worker', 'read_model']

SIZE = (128, 128)
_OVERRIDES = {'pretrained': None, 'teacher_ckpt': None, 'checkpoint': None, 'nms_pre': 50, 'max_per_img': 5}
"""No weights to download, few regions to process. The network stays the same."""

Consumers = dict[nn.Module, list[nn.Module | str]]


@dataclass
class Row:
    """Result of the check of one stock config; counts of layers in its model."""

    config: str  # name, for example mmdet::retinanet/retinanet_r50_fpn_1x_coco.py
    convs: int = 0
    converted: int = 0  # standardized convolutions
    norms: int = 0  # BatchNorm layers that became GroupNorm
    unrun: int = 0  # convolutions that were not run
    skipped: dict[str, int] = field(default_factory=dict)  # plain convolutions by reason
    verdict: str = 'pass'  # or 'cannot build', 'fail'
    why: str = ''  # if not 'pass'


def prepare_sweep_worker() -> None:
    """Prepare a process for checks of models: no output, and a process group for mmcv's SyncBN."""
    prepare_worker(logging.ERROR)
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def read_model(name: str) -> tuple[str, bytes]:
    """Return the default scope of a stock config and its pickled ``model``; some stock configs raise exceptions."""
    config = Config.fromfile(stock_config(name))
    scope = config.get('default_scope') or name.partition('::')[0]
    if 'model' not in config:
        raise WSError('it has no model')
    return scope, pickle.dumps(map_dicts(_simplify, config.model.to_dict()))


def _simplify(part: dict[str, Any], path: str) -> dict[str, Any]:
    """Apply the overrides and sort the keys, so that equal models have equal pickles."""
    changed = {key: value for key, value in _OVERRIDES.items() if key in part}
    if part.get('pretrained') is True:  # timm's switch
        changed['pretrained'] = False
    if 'num' in part and 'Sampler' in part.get('type', ''):
        changed['num'] = 8
    if isinstance(part.get('init_cfg'), dict) and part['init_cfg'].get('type') == 'Pretrained':
        changed['init_cfg'] = None
    return dict(sorted((part | changed).items(), key=lambda item: str(item[0])))


def check_placement(name: str, scope: str, model: bytes) -> Row:
    """Build a model with its own type and with the ``mmws.`` prefix, run the second, and compare placement and run.

    The run is real: on the CPU, with the toolkit's ``loss``, ``predict`` and ``forward`` on a small random image.
    ``scope`` and ``model`` are from :func:`read_model`; ``name`` is for the row.
    """
    gc.collect()  # reference cycles hold the previous model
    row = Row(name)
    with DefaultScope.overwrite_default_scope(scope):
        config = ConfigDict(pickle.loads(model))
        try:
            stock = MODELS.build(copy.deepcopy(config))
        except (*FOREIGN_ERRORS, OSError) as error:
            row.verdict, row.why = 'cannot build', f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
            return row
        converted = MODELS.build({**config, 'type': f'mmws.{config.type}'})
        num_classes = min((part['num_classes'] for _, part in dicts_in(config) if 'num_classes' in part), default=2)
        consumers = _run_on_samples(converted, scope, num_classes)
    names = {module: name for name, module in converted.named_modules()}
    errors = [*_placement_errors(consumers, names), *_conversion_errors(stock, converted, names)]
    convs = [module for module in converted.modules() if is_conv(module)]
    row.convs, row.converted = len(convs), sum(map(standardizes_itself, convs))
    row.norms = sum(map(is_batch_norm, stock.modules()))
    row.unrun = sum(conv not in consumers for conv in convs)
    row.skipped = dict(Counter(
        decide(consumers[conv]).reason or unsupported_reason(conv) if conv in consumers else 'not run'
        for conv in convs if not standardizes_itself(conv)))
    row.verdict, row.why = ('fail' if errors else 'pass'), '; '.join(errors[:5])
    return row


def _run_on_samples(model: nn.Module, scope: str, num_classes: int) -> Consumers:
    """Return the consumers of each convolution that ran, from all runs that ended without an error."""
    consumers: Consumers = {}
    convs = {module for module in model.modules() if is_conv(module)}
    for part in (model, *model.children()):
        for mode in ('loss', 'tensor', 'predict') if hasattr(part, 'data_preprocessor') else ():
            if convs <= consumers.keys():
                return consumers
            samples = demo_samples(scope, SIZE, num_classes)
            with OutputRecorder(model) as recorder, torch.no_grad():
                try:
                    part.train(mode == 'loss')
                    part(torch.randn(1, 3, *SIZE), samples, mode=mode)
                except FOREIGN_ERRORS:
                    continue
            for conv, seen in recorder.consumers.items():
                consumers.setdefault(conv, []).extend(consumer for consumer in seen if consumer not in consumers[conv])
    return run_in_parts(model) | consumers  # the run of single parts reaches the remaining convolutions


def _placement_errors(consumers: Consumers, names: Mapping[nn.Module, str]) -> Iterator[str]:
    for conv, seen in consumers.items():
        reason = decide(seen).reason
        if standardizes_itself(conv) and reason:
            yield f'{names[conv]} is standardized, but {reason}'
        elif not standardizes_itself(conv) and not reason and not unsupported_reason(conv):
            yield f'{names[conv]} is plain, but only norms consume its output'


def _conversion_errors(stock: nn.Module, converted: nn.Module, names: Mapping[nn.Module, str]) -> Iterator[str]:
    """Yield each unexpected difference. Expected: BatchNorm -> GroupNorm, convolution -> its WS class."""
    for before, after in zip(stock.modules(), converted.modules(), strict=True):
        replaced = is_batch_norm(before) and isinstance(after, nn.GroupNorm)
        standardized = is_conv(before) and type(after) is standardized_class(before)
        if type(after) is not type(before) and not replaced and not standardized:
            yield f'{names[after]} changed from {type(before).__name__} to {type(after).__name__}'
        shapes = [[parameter.shape for parameter in module.parameters(recurse=False)] for module in (before, after)]
        if shapes[0] != shapes[1]:
            yield f'{names[after]} has parameters of other shapes'
        if isinstance(after, BatchNorm):
            yield f'{names[after]} is still a BatchNorm'

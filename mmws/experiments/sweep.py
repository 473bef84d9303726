"""The check of placement by a real run, on the toolkits' stock configs. Behind ``tools/sweep.py``."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, distributed, nn

from mmws.conversion.convert import why_unfit
from mmws.conversion.meta_run import run
from mmws.conversion.module_tree import is_conv
from mmws.conversion.norm_types import is_batch_norm
from mmws.conversion.output_recorder import OutputRecorder
from mmws.conversion.placement import judge
from mmws.conversion.swap_convs import standardized_class, standardizes_itself
from mmws.errors import FOREIGN_ERRORS, WSError
from mmws.openmmlab.stock_configs import stock_config

__all__ = ['Row', 'check_model', 'prepare_process', 'read_model']

SIZE = 128
# Weights cannot be had, and a run needs few regions. None of it is of the network.
_QUICK = {'pretrained': None, 'teacher_ckpt': None, 'checkpoint': None, 'nms_pre': 50, 'max_per_img': 5}


@dataclass
class Row:
    """What the check of one stock config found.

    Attributes:
        config: its name, such as ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.
        convs: convolutions in the model.
        converted: those of them that are standardized.
        norms: BatchNorm layers that became GroupNorm.
        unrun: convolutions that the real run did not reach.
        skipped: how many stayed plain, by reason.
        verdict: ``pass``, ``cannot build`` or ``fail``.
        why: of the last two.
    """

    config: str
    convs: int = 0
    converted: int = 0
    norms: int = 0
    unrun: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    verdict: str = 'pass'
    why: str = ''


def prepare_process() -> None:
    """Make this process one of several that check models: one thread, no log, and a process group for mmcv's SyncBN."""
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    logging.disable(logging.ERROR)
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def read_model(name: str) -> tuple[str, bytes]:
    """Return the default scope of a stock config and its model without pretrained weights, pickled.

    Raises:
        Exception: whatever the config raises; some stock ones are broken.
    """
    config = Config.fromfile(stock_config(name))
    scope = config.get('default_scope') or name.partition('::')[0]
    if 'model' not in config:
        raise WSError('it has no model')
    return scope, pickle.dumps(_for_a_quick_run(config.model.to_dict()))


def _for_a_quick_run(config: Any) -> Any:
    if isinstance(config, dict):
        pretrained = config.get('init_cfg')
        changed = {key: value for key, value in _QUICK.items() if key in config}
        if config.get('pretrained') is True:  # timm's switch
            changed['pretrained'] = False
        if 'num' in config and 'Sampler' in config.get('type', ''):
            changed['num'] = 8
        if isinstance(pretrained, dict) and pretrained.get('type') == 'Pretrained':
            changed['init_cfg'] = None
        return {key: changed.get(key, _for_a_quick_run(config[key])) for key in sorted(config, key=str)}
    return type(config)(map(_for_a_quick_run, config)) if isinstance(config, (list, tuple)) else config


def check_model(name: str, scope: str, model: bytes) -> Row:
    """Build a model with its own type and with the prefix, run the second, and compare what was chosen with what ran.

    The run is real: on the CPU, with the toolkit's own ``loss``, ``predict`` and ``forward`` on a small random image.

    Args:
        name: of the config, for the row.
        scope: the toolkit.
        model: as :func:`read_model` gives it.
    """
    gc.collect()  # the model before is held in cycles
    row = Row(name)
    with DefaultScope.overwrite_default_scope(scope):
        config = ConfigDict(pickle.loads(model))
        try:
            own = MODELS.build(copy.deepcopy(config))
        except (*FOREIGN_ERRORS, OSError) as error:
            row.verdict, row.why = 'cannot build', f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
            return row
        ours = MODELS.build({**config, 'type': f'mmws.{config.type}'})
        consumers = _really_run(ours, scope, min(_values(config, 'num_classes'), default=2))
    names = {module: name for name, module in ours.named_modules()}
    wrong = [*_wrongly_placed(ours, consumers, names), *_wrongly_changed(own, ours, names)]
    convs = [module for module in ours.modules() if is_conv(module)]
    row.convs, row.converted = len(convs), sum(map(standardizes_itself, convs))
    row.norms = sum(map(is_batch_norm, own.modules()))
    row.unrun = sum(conv not in consumers for conv in convs)
    row.skipped = dict(Counter(judge(consumers[conv]).reason or why_unfit(conv) if conv in consumers else 'not run'
                               for conv in convs if not standardizes_itself(conv)))
    row.verdict, row.why = ('fail' if wrong else 'pass'), '; '.join(wrong[:5])
    return row


def _values(config: Any, key: str) -> Iterator[Any]:
    """What ``config`` says for ``key``, wherever it does."""
    if isinstance(config, dict):
        yield from (value for name, value in config.items() if name == key)
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, (list, tuple)) else ():
        yield from _values(part, key)


def _really_run(model: nn.Module, scope: str, num_classes: int) -> dict[nn.Module, list[nn.Module | str]]:
    """What took the output of each convolution that ran, in all the runs that came to an end."""
    consumers: dict[nn.Module, list[nn.Module | str]] = {}
    convs = {module for module in model.modules() if is_conv(module)}
    for part in (model, *model.children()):
        for mode in ('loss', 'tensor', 'predict') if hasattr(part, 'data_preprocessor') else ():
            if convs <= consumers.keys():
                return consumers
            inputs, samples = _batch(scope, num_classes)
            with OutputRecorder(model) as recorder, torch.no_grad():
                try:
                    part.train(mode == 'loss')
                    part(inputs, samples, mode=mode)
                except FOREIGN_ERRORS:
                    continue
            for conv, seen in recorder.consumers.items():
                consumers.setdefault(conv, []).extend(consumer for consumer in seen if consumer not in consumers[conv])
    return run(model) | consumers  # in parts where the whole would not run


def _batch(scope: str, num_classes: int) -> tuple[Tensor, list[Any]]:
    """An image with annotations of every kind, in the form that the toolkit's data preprocessor gives."""
    size = {'img_shape': (SIZE, SIZE), 'pad_shape': (SIZE, SIZE), 'batch_input_shape': (SIZE, SIZE)}
    if scope == 'mmseg':
        label = PixelData(data=torch.randint(num_classes, (1, SIZE, SIZE)))
        sample = SegDataSample(gt_sem_seg=label, gt_edge_map=label, metainfo=size | {'ori_shape': (SIZE, SIZE)})
    else:
        demo = demo_mm_inputs(1, (3, SIZE, SIZE), num_items=[3], with_mask=True, with_semantic=True)
        sample = demo['data_samples'][0]
        sample.set_metainfo(size)
        sample.gt_instances.labels %= num_classes
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes)
        sample.gt_sem_seg.sem_seg %= num_classes
    return torch.randn(1, 3, SIZE, SIZE), [sample]


def _wrongly_placed(model: nn.Module, consumers: Mapping[nn.Module, list[nn.Module | str]],
                    names: Mapping[nn.Module, str]) -> Iterator[str]:
    for conv, seen in consumers.items():
        if standardizes_itself(conv) and judge(seen).reason:
            yield f'{names[conv]} is standardized, but {judge(seen).reason}'
        elif not standardizes_itself(conv) and not judge(seen).reason and not why_unfit(conv):
            yield f'{names[conv]} is plain, but norms alone take its output'


def _wrongly_changed(own: nn.Module, ours: nn.Module, names: Mapping[nn.Module, str]) -> Iterator[str]:
    """Differences of a converted model from the one it was made of, other than the two that it is made by."""
    for before, after in zip(own.modules(), ours.modules(), strict=True):
        replaced = is_batch_norm(before) and isinstance(after, nn.GroupNorm)
        standardized = is_conv(before) and type(after) is standardized_class(before)
        if type(after) is not type(before) and not replaced and not standardized:
            yield f'{names[after]} was {type(before).__name__} and is {type(after).__name__}'
        shapes = [[parameter.shape for parameter in module.parameters(recurse=False)] for module in (before, after)]
        if shapes[0] != shapes[1]:
            yield f'{names[after]} has parameters of other shapes'
        if isinstance(after, nn.modules.batchnorm._BatchNorm):
            yield f'{names[after]} is a BatchNorm still'

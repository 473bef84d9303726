"""Compare the placement of WS with a real run, on the stock configs of a toolkit. Used by ``tools/sweep.py``."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import distributed, nn
from torch.overrides import TorchFunctionMode

from mmws.conversion.dry_run import dry_run
from mmws.conversion.layer_types import is_batch_norm, is_conv
from mmws.conversion.output_recorder import Consumers, OutputRecorder
from mmws.conversion.placement import decide
from mmws.conversion.run_in_parts import run_in_parts
from mmws.conversion.swap_convs import has_known_forward, standardized_class, standardizes_itself
from mmws.conversion.unsupported import unsupported_reason
from mmws.conversion.weight_use import WeightUse
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception
from mmws.experiments.demo_samples import demo_batches
from mmws.experiments.worker import prepare_worker, release_memory
from mmws.openmmlab.config_tree import dicts_in, map_dicts
from mmws.openmmlab.stock_configs import stock_config
from mmws.ops.torch_compat import tree_leaves

__all__ = ['Row', 'check_placement', 'fill_row_', 'non_finite', 'prepare_sweep_worker', 'read_model']

SIZES = (128, 128), (320, 320)
"""Height and width of the images in pixels; the second for networks that cannot process the first."""
_OVERRIDES = {'pretrained': None, 'teacher_ckpt': None, 'checkpoint': None, 'img_size': SIZES[0], 'nms_pre': 50,
              'max_per_img': 5, 'num_proposals': 5, 'use_torchvision': False}
"""No weights to download, a small image, few regions to process. The network stays the same."""


@dataclass
class Row:
    """Result of the check of one stock config; counts of layers in its model."""

    config: str  # name, for example mmdet::retinanet/retinanet_r50_fpn_1x_coco.py, timm::resnet18
    parameters: int = 0
    convs: int = 0
    converted: int = 0  # standardized convolutions
    norms: int = 0  # BatchNorm layers that became GroupNorm
    unrun: int = 0  # convolutions that were not run
    skipped: dict[str, int] = field(default_factory=dict)  # plain convolutions by reason
    verdict: str = 'pass'  # or 'cannot build', 'not checked', 'fail'
    why: str = ''  # if not 'pass'


def prepare_sweep_worker(packages: Sequence[str] = ('mmdet', 'mmseg')) -> None:
    """Prepare a process for checks of models: no output, a process group for mmcv's SyncBN, and all types loaded."""
    prepare_worker(logging.ERROR)
    for package in packages:
        import_module(f'{package}.models')
    gc.freeze()  # no collection visits what is loaded: half a million objects
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
    if isinstance(part.get('img_size'), int):
        changed['img_size'] = SIZES[0][0]
    if part.get('pretrained') is True:  # timm's switch
        changed['pretrained'] = False
    if 'num' in part and 'Sampler' in part.get('type', ''):
        changed['num'] = 8
    if isinstance(part.get('init_cfg'), dict) and part['init_cfg'].get('type') == 'Pretrained':
        changed['init_cfg'] = None
    return dict(sorted({**part, **changed}.items(), key=lambda item: str(item[0])))


def check_placement(name: str, scope: str, model: bytes, whole: bool = True) -> Row:
    """Build a model with its own type and with the ``mmws.`` prefix, run the second, and compare placement and run.

    The run is real: on the CPU, with the toolkit's ``loss``, ``predict`` and ``forward`` on a small random image.
    ``scope`` and ``model`` are from :func:`read_model`; ``name`` is for the row. ``whole=False``: without gradients,
    and without a run of evaluation where the run of training reaches every convolution.
    """
    release_memory()  # of the previous model
    torch.manual_seed(0)
    row = Row(name)
    with DefaultScope.overwrite_default_scope(scope):
        config = ConfigDict(pickle.loads(model))
        try:
            stock = _build_structure(copy.deepcopy(config))
        except (*FOREIGN_ERRORS, OSError) as error:
            row.verdict, row.why = 'cannot build', format_exception(error)
            return row
        converted = MODELS.build({**config, 'type': f'mmws.{config.type}'})
        _fill_uninitialized_(converted)
        num_classes = min((part['num_classes'] for _, part in dicts_in(config) if 'num_classes' in part), default=2)
        consumers, compared, errors = _run_on_samples(converted, scope, num_classes, whole)
    fill_row_(row, stock, converted, consumers, compared, errors)
    return row


@torch.no_grad()
def _fill_uninitialized_(model: nn.Module) -> None:
    """Give small random values to parameters that a class left as allocated, as mmdet's TridentConv does."""
    for parameter in model.parameters():
        if parameter.numel() and not parameter.abs().max() < 1e3:  # also true for NaN
            parameter.normal_(std=0.01)


def fill_row_(row: Row, stock: nn.Module, converted: nn.Module, consumers: Consumers, compared: Consumers,
              errors: list[str]) -> None:
    """Compare a network with its converted form and with the consumers of real runs; write the result to ``row``.

    Args:
        row: of the table.
        stock: the network.
        converted: its converted form.
        consumers: of the runs that give the reasons in the row.
        compared: of other runs.
        errors: of the runs.
    """
    names = {module: name for name, module in converted.named_modules()}
    convs = _convs(converted)
    unknown = [conv for conv in convs if not has_known_forward(conv) and not standardizes_itself(conv)]
    uses = dry_run(converted).uses if unknown else {}
    errors = [*errors, *_placement_errors(consumers, names, uses), *_placement_errors(compared, names, uses),
              *_conversion_errors(stock, converted, names)]
    row.parameters = sum(parameter.numel() for parameter in stock.parameters())
    row.convs, row.converted = len(convs), sum(map(standardizes_itself, convs))
    row.norms = sum(map(is_batch_norm, stock.modules()))
    unrun = [names[conv] for conv in convs if conv not in consumers]
    row.unrun = len(unrun)
    row.skipped = dict(Counter(
        decide(consumers[conv]).reason or unsupported_reason(conv, uses.get(conv)) if conv in consumers else 'not run'
        for conv in convs if not standardizes_itself(conv)))
    row.verdict, row.why = ('fail' if errors else 'pass'), '; '.join(errors[:5])
    if unrun and not errors:
        row.why = f'not run: {", ".join(unrun)}'


def _build_structure(config: ConfigDict) -> nn.Module:
    """Build a model without values: on the meta device in the end, as not all models can be built there."""
    with _WithoutRandomValues():
        model: nn.Module = MODELS.build(config)
    return model.to('meta')


class _WithoutRandomValues(TorchFunctionMode):
    """Context that leaves weights as allocated. Their random values take most of the time to build a model."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, '__name__', '').endswith(('uniform_', 'normal_')):  # of a tensor, and in torch.nn.init
            return args[0] if args else kwargs['tensor']
        return function(*args, **kwargs)


def _run_on_samples(model: nn.Module, scope: str, num_classes: int,
                    whole: bool) -> tuple[Consumers, Consumers, list[str]]:
    """Return what runs of the model show: consumers, more consumers, and what was not finite.

    The first are of runs until every convolution ran. The second are of a run of evaluation after that.
    """
    consumers: Consumers = {}
    compared: Consumers = {}
    errors: list[str] = []
    ran = set()
    parts = [part for part in (model, *model.children()) if hasattr(part, 'data_preprocessor')]
    for size, part, mode in product(SIZES, parts, ('loss', 'tensor', 'predict')):
        complete = consumers.keys() >= set(_convs(part))
        if complete and (mode == 'tensor' or not whole or (part, mode) in ran):
            continue
        with suppress(*FOREIGN_ERRORS):
            for inputs, samples in demo_batches(part, scope, size, num_classes):
                seen = _run(model, part, mode, inputs, samples, errors if whole else None)
                found = compared if complete else consumers
                for conv, others in seen.items():
                    found.setdefault(conv, []).extend(other for other in others if other not in found[conv])
                if seen:
                    ran.add((part, mode))
                    break
    if consumers.keys() >= set(_convs(model)):
        return consumers, compared, errors
    return {**run_in_parts(model), **consumers}, compared, errors  # single parts reach the remaining convolutions


def _run(model: nn.Module, part: nn.Module, mode: str, inputs: Any, samples: Any,
         errors: list[str] | None) -> Consumers:
    """Run ``part``, and return what the run showed, nothing if it failed.

    With ``errors``, the losses also run backward, and what is not finite is added to it.
    """
    with_gradients = mode == 'loss' and errors is not None
    try:
        part.train(mode == 'loss')
        with OutputRecorder(model) as recorder, torch.set_grad_enabled(with_gradients):
            output = part(inputs, samples, mode=mode)
    except (*FOREIGN_ERRORS, OSError):  # some read files
        return {}
    if with_gradients and errors is not None:  # the other outputs may have -inf for what is masked
        try:
            errors += non_finite(part, output)
        except FOREIGN_ERRORS as error:
            errors.append(f'the backward pass failed: {format_exception(error)}')
    return recorder.consumers


def non_finite(model: nn.Module, output: Any) -> list[str]:
    """Compute the gradients of an output; return what of both is infinite or NaN."""
    values = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    found = ['an output is not finite'] if not all(value.isfinite().all() for value in values) else []
    total = sum(value.float().mean() for value in values if value.requires_grad)
    if isinstance(total, torch.Tensor):
        torch.autograd.backward(total)
        found += [f'the gradient of {name} is not finite' for name, parameter in model.named_parameters()
                  if parameter.grad is not None and not parameter.grad.isfinite().all()][:3]
        model.zero_grad()
    return found


def _convs(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if is_conv(module)]


def _placement_errors(consumers: Consumers, names: Mapping[nn.Module, str],
                      uses: Mapping[nn.Module, WeightUse]) -> Iterator[str]:
    for conv, seen in consumers.items():
        reason = decide(seen).reason
        if standardizes_itself(conv) and reason:
            yield f'{names[conv]} is standardized, but {reason}'
        elif not standardizes_itself(conv) and not reason and not unsupported_reason(conv, uses.get(conv)):
            yield f'{names[conv]} is plain, but only norms consume its output'


def _conversion_errors(stock: nn.Module, converted: nn.Module, names: Mapping[nn.Module, str]) -> Iterator[str]:
    """Yield each unexpected difference. Expected: BatchNorm -> GroupNorm, convolution -> its WS class."""
    befores, afters = list(stock.modules()), list(converted.modules())
    if len(befores) != len(afters):
        yield f'{len(afters)} modules instead of {len(befores)}'
    for before, after in zip(befores, afters):
        replaced = is_batch_norm(before) and isinstance(after, nn.GroupNorm)
        own_subclass = getattr(after, 'plain', None) is type(before)
        standardized = own_subclass or (is_conv(before) and type(after) is standardized_class(before))
        if type(after) is not type(before) and not replaced and not standardized:
            yield f'{names[after]} changed from {type(before).__name__} to {type(after).__name__}'
        shapes = [[parameter.shape for parameter in module.parameters(recurse=False)] for module in (before, after)]
        if shapes[0] != shapes[1]:
            yield f'{names[after]} has parameters of other shapes'
        if is_batch_norm(after):  # the report names a subclass of unknown behaviour, as SparK's, and it stays
            yield f'{names[after]} is still a BatchNorm'

"""Compare the placement of WS with a real run, on the stock configs of a toolkit. Used by ``tools/sweep.py``."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from torch import distributed, nn

from mmws.conversion.dry_run import dry_run
from mmws.conversion.layer_types import is_batch_norm, is_conv
from mmws.conversion.output_recorder import Consumers
from mmws.conversion.placement import decide
from mmws.conversion.swap_convs import has_known_forward, standardized_class, standardizes_itself
from mmws.conversion.unsupported import unsupported_reason
from mmws.conversion.weight_use import WeightUse
from mmws.errors import FOREIGN_ERRORS, format_exception
from mmws.experiments.sweep_models import build_model, build_structure
from mmws.experiments.sweep_run import NOT_FINITE, Runs, convs_of, has_losses, run_losses, run_on_samples
from mmws.experiments.worker import keep_memory, prepare_worker, release_memory
from mmws.openmmlab.config_tree import dicts_in

__all__ = ['Row', 'check_placement', 'conversion_errors', 'fill_row_', 'prepare_sweep_worker']

@dataclass
class Row:
    """Result of the check of one stock config; counts of layers in its model."""

    config: str  # name, for example mmdet::retinanet/retinanet_r50_fpn_1x_coco.py, timm::resnet18
    parameters: int = 0
    convs: int = 0
    converted: int = 0  # standardized convolutions
    confirmed: int = 0  # of them, those with norms as the only consumers in the autograd graph of a loss
    norms: int = 0  # BatchNorm layers that became GroupNorm
    unrun: int = 0  # convolutions that were not run
    backward: int = 0  # 1 if a loss ran backward
    skipped: dict[str, int] = field(default_factory=dict)  # plain convolutions by reason
    verdict: str = 'pass'  # or 'cannot build', 'not checked', 'fail'
    why: str = ''  # if not 'pass'; else the names of the convolutions that were not run, or what is not finite


def prepare_sweep_worker(packages: Sequence[str] = ('mmdet', 'mmseg'), keep_freed: bool = False) -> None:
    """Prepare a process for checks of models: no output, a process group for mmcv's SyncBN, and all types loaded.

    ``keep_freed`` takes more memory and less time, see :func:`keep_memory`.
    """
    prepare_worker(logging.ERROR)
    if keep_freed:
        keep_memory()
    torch.set_flush_denormal(True)  # small random weights give such numbers, and processors are slow with them
    for name in ('epoch', 'iter'):
        MessageHub.get_current_instance().update_info(name, 0)  # as the runner does; some losses read them
    for package in packages:
        import_module(f'{package}.models')
    gc.freeze()  # no collection visits what is loaded: half a million objects
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


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
            stock = build_structure(copy.deepcopy(config))
        except (*FOREIGN_ERRORS, OSError) as error:
            row.verdict, row.why = 'cannot build', format_exception(error)
            return row
        converted = build_model(ConfigDict({**config, 'type': f'mmws.{config.type}'}))
        changes = conversion_errors(stock, converted)
        num_classes = min((part['num_classes'] for _, part in dicts_in(config) if 'num_classes' in part), default=2)
        runs = run_on_samples(converted, stock, scope, num_classes, whole)
        trains = whole and has_losses(converted)
        if NOT_FINITE in runs.errors or (trains and not runs.backward and not runs.errors):
            plain = run_losses(build_model(copy.deepcopy(config)), stock, scope, num_classes)
            if NOT_FINITE in plain.errors:
                row.why = f'{NOT_FINITE} without mmws either'
            runs.errors = [error for error in runs.errors if error not in plain.errors]
            if plain.backward and not runs.backward:
                runs.errors.append('no loss ran backward, but one does without mmws')
    runs.errors += changes
    fill_row_(row, stock, converted, runs)
    return row


def fill_row_(row: Row, stock: nn.Module, converted: nn.Module, runs: Runs) -> None:
    """Compare the placement in a network with the consumers that real runs show; write the result to ``row``."""
    names = {module: name for name, module in converted.named_modules()}
    convs = convs_of(converted)
    unknown = [conv for conv in convs if not has_known_forward(conv) and not standardizes_itself(conv)]
    uses = dry_run(converted).uses if unknown else {}
    consumers = runs.consumers
    errors = list(runs.errors)
    for record in (consumers, runs.compared, runs.autograd):
        errors += _placement_errors(record, names, uses)
    row.parameters = sum(parameter.numel() for parameter in stock.parameters())
    row.convs, row.converted = len(convs), sum(map(standardizes_itself, convs))
    row.confirmed = sum(standardizes_itself(conv) and not decide(seen).reason for conv, seen in runs.autograd.items())
    row.norms = sum(map(is_batch_norm, stock.modules()))
    unrun = [names[conv] for conv in convs if conv not in consumers]
    row.unrun, row.backward = len(unrun), int(runs.backward)
    row.skipped = dict(Counter(
        decide(consumers[conv]).reason or unsupported_reason(conv, uses.get(conv)) if conv in consumers else 'not run'
        for conv in convs if not standardizes_itself(conv)))
    row.verdict, row.why = ('fail' if errors else 'pass'), '; '.join(errors[:5]) or row.why
    if unrun and not errors:
        row.why = f'not run: {", ".join(unrun)}'
    if unrun and len(unrun) == len(convs) and not errors:
        row.verdict, row.why = 'not checked', 'no convolution ran'


def _placement_errors(consumers: Consumers, names: Mapping[nn.Module, str],
                      uses: Mapping[nn.Module, WeightUse]) -> Iterator[str]:
    for conv, seen in consumers.items():
        reason = decide(seen).reason
        if standardizes_itself(conv) and reason:
            yield f'{names[conv]} is standardized, but {reason}'
        elif not standardizes_itself(conv) and not reason and not unsupported_reason(conv, uses.get(conv)):
            yield f'{names[conv]} is plain, but only norms consume its output'


def conversion_errors(stock: nn.Module, converted: nn.Module) -> list[str]:
    """Return each unexpected difference. Expected: BatchNorm -> GroupNorm, convolution -> its WS class.

    Compare before a run: some networks create modules in their forward.
    """
    befores, afters = list(stock.modules()), dict(converted.named_modules())
    errors = [f'{len(afters)} modules instead of {len(befores)}'] if len(befores) != len(afters) else []
    for before, (name, after) in zip(befores, afters.items()):
        replaced = is_batch_norm(before) and isinstance(after, nn.GroupNorm)
        own_subclass = getattr(after, 'plain', None) is type(before)
        standardized = own_subclass or (is_conv(before) and type(after) is standardized_class(before))
        if type(after) is not type(before) and not replaced and not standardized:
            errors.append(f'{name} changed from {type(before).__name__} to {type(after).__name__}')
        shapes = [[parameter.shape for parameter in module.parameters(recurse=False)] for module in (before, after)]
        if shapes[0] != shapes[1]:
            errors.append(f'{name} has parameters of other shapes')
        if is_batch_norm(after):  # the report names a subclass of unknown behaviour, as SparK's, and it stays
            errors.append(f'{name} is still a BatchNorm')
    return errors

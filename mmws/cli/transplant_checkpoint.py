"""A checkpoint of a BatchNorm network becomes one of the GN+WS network of a config."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mmws.checkpoint.batch_norm import BatchNormWeights, read_batch_norm_weights
from mmws.checkpoint.convert import KEPT_META
from mmws.checkpoint.reader import sha256_of
from mmws.checkpoint.writer import ENDINGS, check_meta, write_checkpoint
from mmws.cli.check_data import datasets_of, files_of
from mmws.cli.config import silence
from mmws.cli.distill import Distillation, check_batch_size, distill
from mmws.cli.load_model import build_model
from mmws.cli.transplant_data import Forward, ImageFiles, image_paths, load_batch
from mmws.cli.transplant_input import warn_of_wrong_input
from mmws.conversion.layer_types import batch_norms
from mmws.errors import WSError
from mmws.files import check_output
from mmws.transplant.check import check_finite
from mmws.transplant.outputs import relative_distance
from mmws.transplant.record import evaluating
from mmws.transplant.report import TransplantReport
from mmws.transplant.transplant import transplant_
from mmws.version import __version__

__all__ = ['Transplant', 'transplant_checkpoint']


@dataclass
class Transplant:
    """Networks of a transplant: the whole models, or their backbones if the checkpoint has no more.

    Attributes:
        teacher: the BatchNorm network with the weights of the checkpoint.
        student: the converted network of the config.
        weights: the weights of the checkpoint.
    """

    teacher: Any
    student: Any
    weights: BatchNormWeights


def transplant_checkpoint(config: Config, checkpoint: str, out: Path, folder: Path | None, number: int,
                          steps: int) -> TransplantReport:
    """Read BatchNorm weights, fit the network of ``config`` to them, and write its weights.

    Args:
        config: with a type that has the ``mmws.`` prefix.
        checkpoint: of the same network with BatchNorm, or of its backbone. It is not changed.
        out: file for the weights: of the network for ``load_from``, or of the backbone for ``ws=dict(pretrained=...)``.
        folder: of images without labels; None for the training data of ``config``.
        number: of images.
        steps: of the distillation after the transplant; 0 for none.

    Raises:
        WSError: if the config has no converted type or no BatchNorm, or the weights or the images cannot be used.
    """
    check_output(out, checkpoint, endings=ENDINGS)
    if steps:
        check_batch_size(config)
    networks = build_networks(config, checkpoint)
    meta = {key: networks.weights.meta[key] for key in KEPT_META if key in networks.weights.meta}
    check_meta(out, meta)
    _print_part(networks.weights, checkpoint, out)
    part = networks.weights.part
    teacher, student = (getattr(model, part) if part else model for model in (networks.teacher, networks.student))
    dataset = ImageFiles(config, image_paths(config, folder))
    data, used = load_batch(networks.teacher.eval(), dataset, number)
    if len(used) < min(number, len(dataset)):
        print_log(f'mmws: {len(used)} images instead of {number}: they are large, or of several sizes', 'current')
    warn_of_wrong_input(networks.teacher, data['inputs'], checkpoint)
    run = Forward(teacher, part, data)
    report = transplant_(student, data, teacher=teacher, forward=run)
    about: dict[str, Any] = {
        'source': Path(checkpoint).name, 'sha256': networks.weights.sha256, 'part': part or 'the whole network',
        'left_over': networks.weights.left_over, 'images': {path: sha256_of(Path(path)) for path in used},
        'data_preprocessor': _plain(config.model.get('data_preprocessor') or config.get('data_preprocessor')),
        'distilled_steps': steps, 'transplanted_by': f'mmws {__version__}'}
    if steps:
        _distill_(config, Distillation(teacher, student, run, networks.teacher.data_preprocessor), dataset, steps, out)
        report.distilled_distance = _distance(run, student, teacher, data)
        about['distilled_images'] = {
            'number': len(dataset), 'sha256_of_sorted_paths': _sha256('\n'.join(sorted(dataset.paths)).encode()),
            'from': [str(folder)] if folder else sorted(
                {str(path) for part in datasets_of(config.train_dataloader) for path in files_of(part)})}
    write_checkpoint(out, student.state_dict(), {**meta, 'transplant': {**about, 'report': report.as_dict()}})
    return report


def _distill_(config: Config, model: Distillation, dataset: ImageFiles, steps: int, out: Path) -> None:
    """Train the student, in a folder beside ``out`` whose name is of everything that determines the result."""
    text = f'{steps} {dataset.paths} {config.pretty_text} {__version__}'.encode()
    weights = [tensor.numpy().tobytes() for network in (model.teacher, model.student)
               for tensor in network.state_dict().values()]
    distill(config, model, dataset, steps, Path(f'{out}.distill') / _sha256(text, *weights)[:12])
    for network in (model.teacher, model.student):
        network.cpu()  # the runner may use a GPU
    check_finite(model.student, 'the distilled network', 'nothing is written; leave out --distill')


def _distance(run: Forward, student: Any, teacher: Any, data: dict[str, Any]) -> float | None:
    run.start()
    with evaluating(student):
        expected = run(teacher, data)
        return relative_distance(run(student, data), expected)


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _plain(config: Any) -> Any:
    """Return a part of a config as dicts, lists, numbers and text."""
    return json.loads(json.dumps(config, default=str))


def _print_part(weights: BatchNormWeights, checkpoint: str, out: Path) -> None:
    """Print which part of the network the checkpoint gives, and how a config uses the result."""
    number, names = len(weights.left_over), ', '.join(weights.left_over[:3])
    left_over = f'; not used: {number} weights ({names}{", ..." if number > 3 else ""})' if number else ''
    part, use = (('the backbone', f'ws=dict(pretrained={str(out)!r})') if weights.part else
                 ('the whole network', f'load_from={str(out)!r}'))
    why = f', because {weights.problem}' if weights.problem else ''
    print_log(f'mmws: {checkpoint} gives {part}{why}{left_over}. Use {out} with {use}', 'current',
              logging.WARNING if why else logging.INFO)


def build_networks(config: Config, checkpoint: str) -> Transplant:
    """Build the network of ``config`` with BatchNorm and converted, and load the weights into the former."""
    if not str(config.model.type).startswith('mmws.'):
        raise WSError(f"{config.filename}: model.type is {config.model.type!r}, expected the prefix 'mmws.', as in "
                      f"'mmws.{config.model.type}'")
    student, teacher = copy.deepcopy(config), copy.deepcopy(config)
    student.model.ws = {**(config.model.get('ws') or {}), 'pretrained': None}
    teacher.model.ws = {'norm': 'keep', 'weight': 'plain', 'pretrained': None}
    with silence():
        model, converted = build_model(teacher), build_model(student)
    if not batch_norms(model):
        raise WSError(f'{config.filename}: its network has no BatchNorm to start from, because the config sets another '
                      'norm (norm_cfg); use a stock config with the prefix mmws.')
    weights = read_batch_norm_weights(
        checkpoint, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    target: Any = getattr(model, weights.part) if weights.part else model
    target.load_state_dict(weights.state_dict, strict=False)  # all names are checked; counters may be missing
    return Transplant(model, converted, weights)

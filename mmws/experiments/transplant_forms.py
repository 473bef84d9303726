"""Comparison of the ways to turn a BatchNorm checkpoint into a start of the converted network."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmws.cli.transplant_checkpoint import build_networks
from mmws.cli.transplant_data import Forward, ImageFiles, image_paths, load_batch
from mmws.errors import WSError
from mmws.experiments.short_run import test_runner
from mmws.transplant.outputs import relative_distance
from mmws.transplant.pairs import copy_weights_, module_pairs
from mmws.transplant.record import evaluating
from mmws.transplant.transplant import transplant_

__all__ = ['FORMS', 'TransplantForm', 'compare_transplants']


@dataclass(frozen=True)
class TransplantForm:
    """One way to start.

    Attributes:
        number: of images; 0 for weights and affine parameters taken over by name.
        ws: options of the conversion.
        arguments: of :func:`mmws.transplant_`.
    """

    number: int = 64
    ws: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


FORMS = {
    'weights by name': TransplantForm(number=0),
    'the norms only': TransplantForm(arguments={'samples': 0}),
    'filters and norms: the default': TransplantForm(),
    '512 positions instead of 4,096': TransplantForm(arguments={'samples': 512}),
    '8 images instead of 64': TransplantForm(number=8),
    '256 images': TransplantForm(number=256),
    '16 groups': TransplantForm(ws={'num_groups': 16}),
    '8 groups': TransplantForm(ws={'num_groups': 8}),
    "weight='plain': GroupNorm alone": TransplantForm(ws={'weight': 'plain'}),
    "weight='plain', weights by name": TransplantForm(number=0, ws={'weight': 'plain'}),
    "norm='EstBN'": TransplantForm(ws={'norm': 'EstBN'}),
}
TEACHER = 'the BatchNorm network'
OTHERS = 32  # images for the distance


def compare_transplants(config: Config, checkpoint: str, folder: Path | None, out: Path) -> Iterator[dict[str, Any]]:
    """Make each start of :data:`FORMS`, and test it without training.

    Args:
        config: with a type that has the ``mmws.`` prefix, and the data of a test.
        checkpoint: of the same network with BatchNorm.
        folder: of images without labels; None for the training data of ``config``.
        out: folder for mmengine's logs.

    Yields:
        ``form``, the ``distance`` of its outputs to the BatchNorm network's (see
        :class:`mmws.transplant.report.TransplantReport`) on images that were not used to fit it, and ``metrics`` of the
        test; first of the BatchNorm network.

    Raises:
        WSError: if the checkpoint or the images cannot be used.
    """
    for index, (name, form) in enumerate({TEACHER: TransplantForm(), **FORMS}.items()):
        changed = copy.deepcopy(config)
        changed.model.ws = {**(config.model.get('ws') or {}), **form.ws}
        networks = build_networks(changed, checkpoint)
        if networks.weights.part:
            raise WSError(f'{checkpoint} is of a backbone; expected the whole network, which can be tested')
        teacher, student = networks.teacher.eval(), networks.student
        paths = image_paths(changed, folder)
        if len(paths) < 2:
            raise WSError(f'expected two images or more, one half to fit and one to measure; got {paths}')
        others, _ = load_batch(teacher, ImageFiles(changed, paths[1::2]), OTHERS)
        if name == TEACHER:
            changed.model.ws.update(norm='keep', weight='plain')
            student = teacher
        elif form.number:
            data, _ = load_batch(teacher, ImageFiles(changed, paths[::2]), form.number)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                transplant_(student, data, teacher=teacher, forward=Forward(teacher, '', data), **form.arguments)
        else:
            copy_weights_(dict(module_pairs(teacher, student)))
        run = Forward(teacher, '', others)
        with evaluating(teacher), evaluating(student):
            expected = run(teacher, others)
            distance = relative_distance(run(student, others), expected)
        runner = test_runner(changed, out / f'form_{index}')
        runner.model.load_state_dict(student.state_dict())
        metrics = {key: round(float(value), 4) for key, value in runner.test().items() if math.isfinite(value)}
        yield {'form': name, 'distance': None if distance is None else round(distance, 3), 'metrics': metrics}

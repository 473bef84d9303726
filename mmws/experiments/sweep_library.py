"""Compare the placement of WS with a real run, on the networks of timm and torchvision. Used by ``tools/sweep.py``."""

from __future__ import annotations

import copy
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from mmws.conversion.convert import convert_
from mmws.conversion.layer_types import batch_norms
from mmws.conversion.output_recorder import OutputRecorder
from mmws.errors import FOREIGN_ERRORS, WSError, format_exception
from mmws.experiments.sweep import Row, conversion_errors, fill_row_
from mmws.experiments.sweep_autograd import AutogradConsumers
from mmws.experiments.sweep_run import Runs, non_finite
from mmws.experiments.worker import release_memory

__all__ = ['LARGEST', 'LIBRARIES', 'check_network', 'library_networks']

LIBRARIES = ('timm', 'torchvision')
LARGEST = 90_000_000
"""Parameters of the largest network that is checked."""
_DETECTORS = tuple(f'torchvision::{kind}' for kind in ('faster', 'fcos', 'keypoint', 'mask', 'retina', 'ssd'))
_SEGMENTERS = tuple(f'torchvision::{kind}' for kind in ('deeplab', 'fcn', 'lraspp'))


def library_networks(library: str) -> list[str]:
    """Return the names of all networks of a library, such as ``'timm::resnet18'``; no quantized ones.

    Raises:
        WSError: if the library is not installed.
    """
    if find_spec(library) is None:
        raise WSError(f'--library {library}: it is not installed; pip install {library}')
    names = (import_module('timm').list_models() if library == 'timm' else
             import_module('torchvision.models').list_models())
    return [f'{library}::{name}' for name in names if not name.startswith('quantized_')]


def check_network(name: str) -> Row | None:
    """Build a network, convert it, and compare the placement with a real forward and backward pass.

    Returns:
        The row; None if the network has no BatchNorm.
    """
    release_memory()  # of the previous network
    torch.manual_seed(0)
    row = Row(name)
    try:
        stock = _build_structure(name)
        if not batch_norms(stock):
            return None
        if sum(parameter.numel() for parameter in stock.parameters()) > LARGEST:
            return Row(name, verdict='not checked', why=f'more than {LARGEST:,} parameters')
        net = _build(name)
    except (*FOREIGN_ERRORS, OSError) as error:
        row.verdict, row.why = 'cannot build', format_exception(error)
        return row
    if name.startswith(_DETECTORS) and not hasattr(torch.ops.torchvision, 'nms'):
        return Row(name, verdict='not checked',
                   why='the operators of torchvision do not load with this version of torch')
    inputs = _inputs(name, stock)
    without_inputs = convert_(copy.deepcopy(net))
    report = convert_(net, inputs=copy.deepcopy(inputs))
    errors = conversion_errors(stock, net)
    with OutputRecorder(net.train()) as recorder, AutogradConsumers(net) as graph:
        output = net(*inputs)
    graph.add(output)
    errors += non_finite(net, output)
    if without_inputs.converted != report.converted:
        differing = sorted({*without_inputs.converted} ^ {*report.converted})
        errors.append(f'other convolutions without inputs: {differing}')
    with OutputRecorder(net.eval()) as evaluation, torch.no_grad():
        net(*inputs)
    fill_row_(row, stock, net, Runs(
        recorder.consumers, evaluation.consumers, graph.consumers, errors, backward=True))
    return row


def _runs(stock: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a network on the meta device can process images of a shape."""
    try:
        stock(torch.empty(shape, device='meta'))
        return True
    except FOREIGN_ERRORS:
        return False


def _build_structure(name: str) -> nn.Module:
    """Build a network on the meta device."""
    try:
        with torch.device('meta'):
            return _build(name)
    except NotImplementedError:  # torchvision's RegNet reads a tensor while it is built
        return _build(name).to('meta')


def _build(name: str) -> nn.Module:
    library, _, network = name.partition('::')
    if library == 'timm':
        return import_module('timm').create_model(network, pretrained=False)  # type: ignore[no-any-return]
    options: dict[str, Any] = {'weights_backbone': None} if name.startswith((*_DETECTORS, *_SEGMENTERS)) else {}
    if name.startswith(_DETECTORS) and not network.startswith('ssd'):
        options['min_size'] = 128  # else the images grow to 800 pixels
    return import_module('torchvision.models').get_model(  # type: ignore[no-any-return]
        network, weights=None, **options)


def _inputs(name: str, stock: Any) -> tuple[Any, ...]:
    """Return the arguments of a training step of two images, small if the network allows."""
    library, _, network = name.partition('::')
    if library == 'timm':
        channels, height, width = stock.pretrained_cfg.get('input_size', (3, 224, 224))
        small = 2, channels, min(128, height), min(128, width)
        return (torch.randn(small if _runs(copy.deepcopy(stock), small) else (2, channels, height, width)),)
    if name.startswith(_DETECTORS):
        images = [torch.rand(3, 128, 128) for _ in range(2)]
        target = {'boxes': torch.tensor([[10.0, 10, 90, 90]]), 'labels': torch.tensor([1]),
                  'masks': torch.ones(1, 128, 128, dtype=torch.uint8), 'keypoints': torch.full((1, 17, 3), 50.0)}
        return images, [copy.deepcopy(target) for _ in images]
    if network.startswith('raft'):
        return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    if network.startswith(('mc3', 'r2plus1d', 'r3d', 's3d')):
        return (torch.randn(1, 3, 16, *((224, 224) if network == 's3d' else (112, 112))),)
    return (torch.randn(2, 3, 299, 299) if network == 'inception_v3' else torch.randn(2, 3, 224, 224),)

"""Export a folded network to ONNX and check it against onnxruntime."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mmws.errors import WSError, format_exception
from mmws.ops.torch_compat import DYNAMIC

__all__ = ['export_onnx']

SHAPES = ((2, 3, 128, 160), (1, 3, 96, 128), (3, 3, 160, 96))  # of the images for the export and the comparison
TOLERANCE = 1e-4  # the backends sum in a different order


class _Network(nn.Module):
    """The part of a toolkit's model that maps tensors to tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Sequence[Tensor]:
        if hasattr(self.model, 'encode_decode'):
            return [self.model.encode_decode(image, [{'img_shape': image.shape[2:]}])]
        return list(self.model.extract_feat(image))


def export_onnx(folded: nn.Module, size: tuple[int, int] | None = None) -> bytes:
    """Return ``folded`` as an ONNX graph: a segmenter's ``logits`` at image size, or a detector's feature maps.

    Input: ``image``, (batch, 3, height, width), normalized as by the model's data_preprocessor. All but 3 are dynamic.

    Args:
        folded: a toolkit's model, see :func:`mmws.fold`.
        size: height and width, if they are to be fixed, as a network needs whose layers depend on them: PSPNet.

    Raises:
        WSError: if the export fails, a convolution does not become a Conv node with a constant weight, or
            onnxruntime computes different outputs.
    """
    if DYNAMIC is None:
        raise WSError(f'the export to ONNX needs torch >= 2.6, this is {torch.__version__}')
    network = _Network(folded).eval()
    shapes = [(count, 3, *(size or image)) for count, _, *image in SHAPES]
    try:
        names = _output_names(network, torch.randn(shapes[0]))
        program = torch.onnx.export(
            network, (torch.randn(shapes[0]),), dynamo=True, verbose=False, input_names=['image'], output_names=names,
            dynamic_shapes=(dict.fromkeys((0,) if size else (0, 2, 3), DYNAMIC),))
        graph: Any = program.model_proto  # type: ignore[union-attr]
        _name_dimensions(graph.graph)
        content: bytes = graph.SerializeToString()
        _check_outputs(content, network, shapes)
    except (RuntimeError, WSError) as error:  # torch.onnx.OnnxExporterError is a RuntimeError
        advice = '' if size else '; if it depends on the size of the image, fix it with --size HEIGHT WIDTH'
        raise WSError(f'cannot export {type(folded).__name__}: {str(error).splitlines()[0]:.300}{advice}') from None
    _check_convs(graph.graph)
    return content


@torch.no_grad()
def _output_names(network: nn.Module, image: Tensor) -> list[str]:
    """Return ``logits``, or the names of feature maps: that of stride 4 is ``c2``, after a neck ``p2``."""
    outputs = network(image)
    model: Any = network.model
    if hasattr(model, 'encode_decode'):
        return ['logits']
    if outputs[0].dim() != 4:
        return [f'features{index}' for index in range(len(outputs))]
    first = round(math.log2(image.shape[2] / outputs[0].shape[2]))
    return [f'{"p" if getattr(model, "with_neck", False) else "c"}{first + index}' for index in range(len(outputs))]


def _name_dimensions(graph: Any) -> None:
    """Rename the symbols of the exporter, such as ``s77``, also where they are part of an expression."""
    named = zip(graph.input[0].type.tensor_type.shape.dim, ('batch', '3', 'height', 'width'))
    names = {size.dim_param: name for size, name in named if size.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r'\w+', lambda symbol: names.get(symbol[0], symbol[0]), size.dim_param)


def _check_convs(graph: Any) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    convs = [node for node in graph.node if node.op_type == 'Conv']
    computed = [node.name for node in convs if node.input[1] not in constants]
    if computed or not convs:
        raise WSError(f'{len(computed)} of {len(convs)} Conv nodes compute their weight ({", ".join(computed[:3])}): '
                      'fold the network first')


@torch.no_grad()
def _check_outputs(content: bytes, network: nn.Module, shapes: Sequence[Sequence[int]] = SHAPES) -> None:
    onnx.checker.check_model(content)
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    for shape in map(tuple, shapes):
        image = torch.randn(shape)
        try:
            outputs = session.run(None, {'image': image.numpy()})
        except Exception as error:  # onnxruntime's exceptions have no other base
            raise WSError(f'onnxruntime fails for images of shape {shape}: {format_exception(error)}') from None
        for expected, actual in zip_longest(network(image), outputs):
            if expected.shape != actual.shape:
                raise WSError(f'onnxruntime computes an output of shape {actual.shape} for images of shape {shape}, '
                              f'expected {tuple(expected.shape)}')
            difference = (torch.from_numpy(actual) - expected).norm() / expected.norm()
            if not difference <= TOLERANCE:
                raise WSError(f'onnxruntime computes different outputs for images of shape {shape}: '
                              f'relative error {difference:.1e}')

"""Export a folded network to ONNX and check it against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mmws.errors import WSError
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


def export_onnx(folded: nn.Module) -> bytes:
    """Return ``folded`` as an ONNX graph: a segmenter's logits at image size, or a detector's feature maps.

    Input: ``image``, (N, 3, H, W), normalized as by the model's data_preprocessor. N, H and W are dynamic.

    Args:
        folded: a toolkit's model, see :func:`mmws.fold`.

    Raises:
        WSError: if the export fails, a convolution does not become a Conv node with a constant weight, or
            onnxruntime computes different outputs.
    """
    if DYNAMIC is None:
        raise WSError(f'the export to ONNX needs torch >= 2.6, this is {torch.__version__}')
    network = _Network(folded).eval()
    try:
        program = torch.onnx.export(
            network, (torch.randn(SHAPES[0]),), dynamo=True, verbose=False, input_names=['image'],
            dynamic_shapes=(dict.fromkeys((0, 2, 3), DYNAMIC),))
    except torch.onnx.OnnxExporterError as error:
        raise WSError(f'cannot export {type(folded).__name__} with dynamic batch and image sizes: '
                      f'{str(error).splitlines()[0]}') from None
    graph: Any = program.model_proto  # type: ignore[union-attr]
    _check_convs(graph.graph)
    content: bytes = graph.SerializeToString()
    _check_outputs(content, network)
    return content


def _check_convs(graph: Any) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    convs = [node for node in graph.node if node.op_type == 'Conv']
    computed = [node.name for node in convs if node.input[1] not in constants]
    if computed or not convs:
        raise WSError(f'{len(computed)} of {len(convs)} Conv nodes compute their weight ({", ".join(computed[:3])}): '
                      'fold the network first')


@torch.no_grad()
def _check_outputs(content: bytes, network: nn.Module) -> None:
    onnx.checker.check_model(content)
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    for shape in SHAPES:
        image = torch.randn(shape)
        for expected, actual in zip_longest(network(image), session.run(None, {'image': image.numpy()})):
            error = (torch.from_numpy(actual) - expected).norm() / expected.norm()
            if expected.shape != actual.shape or not error <= TOLERANCE:
                raise WSError(f'onnxruntime computes different outputs for images of shape {shape}: '
                              f'relative error {error:.1e}')

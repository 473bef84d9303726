"""Folded networks to ONNX, checked against onnxruntime before a file is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mmws.errors import WSError

__all__ = ['export_onnx']

EXAMPLE = (2, 3, 128, 160)
OTHERS = ((1, 3, 96, 128), (3, 3, 160, 96))
TOLERANCE = 1e-4  # the backends add in another order


class _Network(nn.Module):
    """The part of a toolkit's model that is tensors in, tensors out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Sequence[Tensor]:
        if hasattr(self.model, 'encode_decode'):
            return [self.model.encode_decode(image, [{'img_shape': image.shape[2:]}])]
        return list(self.model.extract_feat(image))


def export_onnx(folded: nn.Module) -> bytes:
    """Return ``folded`` as an ONNX graph: a segmenter's logits at the size of the image, or the levels of a neck.

    Batch and size of the image are free. Input: ``image``, (N, 3, H, W), as the model's data_preprocessor hands it on.

    Args:
        folded: a toolkit's model, see :func:`mmws.fold`.

    Raises:
        WSError: if it cannot be exported, its convolutions come out as anything but plain Conv nodes, or onnxruntime
            computes something else.
    """
    network = _Network(folded).eval()
    free = torch.export.Dim.DYNAMIC
    try:
        program = torch.onnx.export(
            network, (torch.randn(EXAMPLE),), dynamo=True, verbose=False, input_names=['image'],
            dynamic_shapes=({0: free, 2: free, 3: free},))
    except torch.onnx.OnnxExporterError as error:
        raise WSError(f'{type(folded).__name__} cannot be exported with a free batch and size: '
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
    for shape in (EXAMPLE, *OTHERS):
        image = torch.randn(shape)
        for ours, theirs in zip(network(image), session.run(None, {'image': image.numpy()}), strict=True):
            difference = (torch.from_numpy(theirs) - ours).norm() / ours.norm()
            if ours.shape != theirs.shape or not difference <= TOLERANCE:
                raise WSError(f'onnxruntime computes something else on images of {shape}: '
                              f'relative error {difference:.1e}')

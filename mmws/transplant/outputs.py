"""Outputs of two networks: their tensors, and the distance between them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mmws.ops.torch_compat import tree_leaves

__all__ = ['float_tensors', 'relative_distance']


def relative_distance(outputs: Any, expected: Any) -> float | None:
    """Return the distance of two structures of tensors, divided by the norm of the second, rounded to 4 digits.

    Tensors of other than floating dtypes are ignored. None if the shapes or the numbers of tensors differ, or if
    ``expected`` is zero or has no floating tensor, or a tensor has NaN or infinite values.

    Example:
        >>> import torch
        >>> relative_distance([torch.tensor([3.0, 5.0]), torch.tensor(1)], [torch.tensor([3.0, 4.0]), torch.tensor(2)])
        0.2
    """
    found, wanted = (float_tensors(value) for value in (outputs, expected))
    if not wanted or [leaf.shape for leaf in found] != [leaf.shape for leaf in wanted]:
        return None
    error = sum(float((one - other).square().sum()) for one, other in zip(found, wanted))
    total = sum(float(leaf.square().sum()) for leaf in wanted)
    return round(math.sqrt(error / total), 4) if total and math.isfinite(error) and math.isfinite(total) else None


def float_tensors(value: Any) -> list[Tensor]:
    """Return the tensors of floating dtypes in a structure of tuples, lists and dicts, as float32.

    Example:
        >>> import torch
        >>> float_tensors({'scores': (torch.tensor([0.5], dtype=torch.half), ), 'labels': torch.tensor([1])})
        [tensor([0.5000])]
    """
    return [leaf.float() for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

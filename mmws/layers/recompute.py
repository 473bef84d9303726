"""A standardized weight that autograd does not keep: the backward pass computes it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mmws.ops.kernels import filter_gradient, standardize_filters
from mmws.ops.standardize import HALF, standardize_weight
from mmws.ops.torch_compat import address, autocast_dtype, version

__all__ = ['RecomputedWeight']


class RecomputedWeight(saved_tensors_hooks):
    """Context that gives a standardized weight; what autograd saves of it in the context is only the raw weight.

    Args:
        weight: the raw weight. Under autocast the standardized weight has the lower precision.
        eps: added to the standard deviation.
        as_filters: swaps between the layout of ``weight`` and one filter per row.

    Raises:
        RuntimeError: in the backward pass, if the weight or another saved tensor was changed in place after the forward
            pass; as autograd does without this context.

    Example:
        >>> weight = torch.randn(8, 3, 3, 3, requires_grad=True)
        >>> with RecomputedWeight(weight, 1e-5, lambda weight: weight) as standardized:
        ...     loss = torch.conv2d(torch.randn(2, 3, 5, 5), standardized).sum()
        >>> loss.backward()
        >>> weight.grad.shape
        torch.Size([8, 3, 3, 3])
    """

    def __init__(self, weight: Tensor, eps: float, as_filters: Callable[[Tensor], Tensor]) -> None:
        super().__init__(self._pack, self._unpack)
        self.weight, self.eps, self.as_filters, self.version = weight, eps, as_filters, version(weight)
        self.recomputed: Tensor | None = None  # by the convolution's backward pass, for that of the weight
        self.standardized: Tensor | None = None

    def __enter__(self) -> Tensor:  # type: ignore[override]
        standardized: Tensor = _Standardize.apply(self.weight, self)  # type: ignore[no-untyped-call]
        self.standardized = standardized.to(autocast_dtype(standardized))
        super().__enter__()
        return self.standardized

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.dtype, self.standardized = self.standardized.dtype, None  # type: ignore[union-attr]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the standardized filters and the factors, see :func:`mmws.ops.kernels.standardize_filters`."""
        filters = self.as_filters(self.weight.detach())
        return standardize_filters(filters.float() if filters.dtype in HALF else filters, self.eps)

    def check(self, tensor: Tensor, saved_version: int) -> None:
        """Raise RuntimeError if ``tensor`` was changed in place since then."""
        if version(tensor) != saved_version:
            raise RuntimeError('a tensor needed for the gradient of a standardized convolution was changed in place '
                               f'after the forward pass: {tuple(tensor.shape)}, {tensor.dtype}; do not change it, or '
                               'run the forward pass again')

    def _pack(self, tensor: Tensor) -> Any:
        ours = self.standardized
        if ours is not None and address(tensor) == address(ours) and tensor.shape == ours.shape:
            return self.version
        return tensor, version(tensor)

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, tuple):
            self.check(*packed)
            return packed[0]  # type: ignore[no-any-return]
        self.check(self.weight, packed)
        self.recomputed, _ = self.compute()
        return self.as_filters(self.recomputed).to(self.dtype)


class _Standardize(torch.autograd.Function):
    """Standardize a weight; save two numbers per filter."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, context: RecomputedWeight) -> Tensor:
        standardized, factors = context.compute()
        ctx.save_for_backward(weight, factors)
        ctx.context = context
        return context.as_filters(standardized).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        weight, factors = ctx.saved_tensors
        context = ctx.context
        if torch.is_grad_enabled():
            again = context.as_filters(standardize_weight(context.as_filters(weight), context.eps))
            return *torch.autograd.grad(again, weight, grad, create_graph=True), None
        standardized, context.recomputed = context.recomputed, None
        if standardized is None:  # the convolution did not need it
            standardized, _ = context.compute()
        filters = context.as_filters(grad).to(standardized.dtype)
        return context.as_filters(filter_gradient(filters, standardized, factors)).to(weight.dtype), None

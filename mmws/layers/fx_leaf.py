"""Make torch.fx record a call of a layer as one node, as it does for torch's own layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import fx

from mmws.ops.torch_compat import tree_leaves

__all__ = ['fx_leaf']


def fx_leaf(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a ``forward`` that torch.fx must not look into.

    The code of a standardized layer depends on the weight's type and size, which a symbolic trace cannot follow. A
    traced network calls the layer itself, so it keeps its cache, and tools such as ``efficient_conv_bn_eval`` find it.
    """
    @wraps(forward)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]
        if any(isinstance(value, (list, tuple, dict)) for value in values):  # else tree_leaves costs too much time
            values = tree_leaves(values)
        proxy: Any = next((value for value in values if isinstance(value, fx.Proxy)), None)
        name = proxy.tracer.path_of_module(self) if proxy is not None else ''
        if name:  # a layer that is traced alone is the root, which is always looked into
            return proxy.tracer.create_proxy('call_module', name, args, kwargs)
        return forward(self, *args, **kwargs)

    return called

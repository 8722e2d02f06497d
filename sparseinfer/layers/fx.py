"""Sparse layers under `torch.fx`: one node each, as torch's own layers are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Proxy", "leaf"]

Proxy: Any = torch.fx.Proxy
"""What a tracer calls modules with, in the place of a tensor."""


def leaf(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The node that calls `layer`; one of the arguments is a `torch.fx.Proxy`.

    Tracers decide by the module that a class is defined in which layers are nodes, and take ours
    for the user's, to be traced through.

    Raises:
        TypeError: the layer has hooks, which would run in the trace and again in the graph.

    Example:
        >>> from sparseinfer import SparseLinear
        >>> model = nn.Sequential(SparseLinear.from_dense(nn.Linear(4, 4)))
        >>> [node.op for node in torch.fx.symbolic_trace(model).graph.nodes]
        ['placeholder', 'call_module', 'output']
    """
    proxy = next(value for value in (*args, *kwargs.values()) if isinstance(value, Proxy))
    tracer: Any = proxy.tracer
    path = tracer.path_of_module(layer)
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise TypeError(
            f"expected {path} to have no hooks under torch.fx, got a {type(layer).__name__} with "
            "hooks; try removing them, or torch.export.export"
        )
    return tracer.create_proxy("call_module", path, args, kwargs)

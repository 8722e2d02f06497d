"""Formulas that models write out, told to be the operators that they are.

torch.fx finds the operators of a formula wherever they stand in a graph. Its numbers have to be the
formula's own; what a formula takes as an argument, such as the eps of a norm, may be any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node, symbolic_trace
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher

__all__ = ["rewrite_formulas"]

aten = torch.ops.aten


def _gelu_tanh(x: Any) -> Any:
    cube = aten.mul.Tensor(aten.pow.Tensor_Scalar(x, 3.0), 0.044715)
    inner = aten.mul.Tensor(aten.add.Tensor(x, cube), math.sqrt(2.0 / math.pi))
    outer = aten.add.Tensor(aten.tanh.default(inner), 1.0)
    return aten.mul.Tensor(aten.mul.Tensor(x, 0.5), outer)


def _gelu(x: Any) -> Any:
    outer = aten.add.Tensor(aten.erf.default(aten.div.Tensor(x, math.sqrt(2.0))), 1.0)
    return aten.mul.Tensor(aten.mul.Tensor(x, 0.5), outer)


def _rms_norm(x: Any, weight: Any, eps: Any) -> Any:
    square = aten.mean.dim(aten.pow.Tensor_Scalar(x, 2), [-1], True)
    normal = aten.mul.Tensor(x, aten.rsqrt.default(aten.add.Tensor(square, eps)))
    return aten.mul.Tensor(weight, normal)


Called = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operator, its arguments and its named arguments."""


def _as_gelu_tanh(x: Node) -> Called:
    return aten.gelu.default, (x,), {"approximate": "tanh"}


def _as_gelu(x: Node) -> Called:
    return aten.gelu.default, (x,), {}


def _as_rms_norm(x: Node, weight: Node, eps: float) -> Called:
    return aten.rms_norm.default, (x, [x.meta["val"].shape[-1]], weight, eps), {}


FORMULAS: tuple[tuple[Callable[..., Any], Callable[..., Called]], ...] = (
    (_gelu_tanh, _as_gelu_tanh),
    (_gelu, _as_gelu),
    (_rms_norm, _as_rms_norm),
)
"""Each as models write it, and the operator that it is."""


def rewrite_formulas(module: GraphModule) -> None:
    """Put the operator in the place of each formula that is found.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x * 0.5 * (torch.erf(x / 2**0.5) + 1.0)
        >>> program = torch.export.export(Model(), (torch.zeros(2),)).run_decompositions()
        >>> rewrite_formulas(program.graph_module)
        >>> [node.target.__name__ for node in program.graph.nodes if node.op == "call_function"]
        ['gelu.default']
    """
    graph = module.graph
    for formula, operator in FORMULAS:
        pattern = symbolic_trace(formula).graph
        names = [node for node in pattern.nodes if node.op == "placeholder"]
        for match in SubgraphMatcher(pattern).match(graph):
            # The last node becomes the operator, so that its name stays that of the result.
            last = match.returning_nodes[0]
            last.target, last.args, last.kwargs = operator(
                *(match.nodes_map[name] for name in names)
            )
    graph.eliminate_dead_code()
    module.recompile()

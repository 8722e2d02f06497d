"""A torch model as a graph: torch.export and its core ATen decompositions, then `lowering`."""

from __future__ import annotations

import functools
import operator
import warnings
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils._pytree import tree_any, tree_map

from sparseinfer.export.errors import Missing, UnsupportedOperators
from sparseinfer.export.graph import MOST_DIMS, Graph, Value
from sparseinfer.export.lower import folded, is_computed, lower
from sparseinfer.export.lowering import Call, Refusal
from sparseinfer.export.masks import Choice
from sparseinfer.export.positions import Positions
from sparseinfer.export.program import drop_assertions

__all__ = ["STATE", "from_torch", "graph_of"]

aten = torch.ops.aten

_WHOLE = (
    aten.linear.default, aten.silu.default, aten.gelu.default, aten.layer_norm.default,
    aten.native_layer_norm.default, aten.rms_norm.default, aten.group_norm.default,
    aten.native_group_norm.default, aten.instance_norm.default, aten.embedding.default,
    aten.scaled_dot_product_attention.default, aten.matmul.default, aten.roll.default,
    aten.adaptive_avg_pool1d.default, aten.hardswish.default, aten.hardsigmoid.default,
    aten.leaky_relu.default, aten.elu.default, aten.softplus.default, aten.prelu.default,
    aten._prelu_kernel.default, aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default,
    aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact2d.default,
    aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default, aten._log_softmax.default,
)  # fmt: skip
"""Operators that torch would cut in smaller ones, and the engine has."""

INPUT_TYPES = (torch.float32, torch.int64, torch.bool)
"""What a model may be called with: ids are int64, and masks either."""

STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
"""Inputs of an exported program that the model holds."""


def from_torch(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Graph, torch.export.ExportedProgram]:
    """The graph of a model in evaluation mode, called with such arguments.

    Raises:
        UnsupportedOperators: it lists every operation that the engine has not, with its module.
        torch._dynamo.exc.UserError: torch.export cannot follow the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval()
        >>> print(from_torch(model, (torch.zeros(1, 4),), {})[0])
        inputs input[1, 4]
        linear[1, 2] = linear(input, 0.weight, 0.bias)  # 0
        relu[1, 2] = relu(activation(linear))  # 1
        outputs relu[1, 2]
    """
    with warnings.catch_warnings():
        # Of torch's own, about how it copies its own trees.
        warnings.simplefilter("ignore", FutureWarning)
        # Masks of torch.nn.utils.prune compute their weight anew at each call, and keep it so.
        warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
        program = torch.export.export(model, args, kwargs)
        known = len(torch._C._dispatch_get_all_op_names())
        program = program.run_decompositions(dict(_decompositions(known)))
        drop_assertions(program.graph_module)
    return graph_of(program), program


@functools.lru_cache(maxsize=1)
def _decompositions(operators: int) -> dict[Any, Any]:
    """What torch cuts which operator in, of as many as are registered.

    To collect these takes torch longer than to cut a small model, and nothing but a new operator
    changes them.
    """
    table = torch.export.default_decompositions()
    for whole in _WHOLE:
        table.pop(whole, None)
    return dict(table.items())


def graph_of(program: torch.export.ExportedProgram) -> Graph:
    """The graph of an exported program whose operators are core ATen ones.

    What only constants go into is computed here, once.

    Raises:
        UnsupportedOperators: as `from_torch`.
    """
    graph = Graph([], [], [])
    missing: list[Missing] = []
    known: dict[str, Any] = {}
    state = {**program.state_dict, **program.constants}
    for spec in program.graph_signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):
            known[spec.arg.name] = spec.arg.value
        elif spec.kind in STATE:
            assert spec.target is not None
            tensor = state[spec.target].detach()
            known[spec.arg.name] = Value(
                spec.target, tuple(tensor.shape), tensor.contiguous(), tensor.dtype
            )
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in known:
                continue
            sample = node.meta["val"]
            value = Value(node.name, tuple(sample.shape), None, sample.dtype)
            value.rows = _rows_read_by(node)
            known[node.name] = value
            graph.inputs.append(value)
        elif node.op == "call_function":
            known[node.name] = _lowered(node, known, graph, missing)
    for output in program.graph_signature.output_specs:
        if output.kind != OutputKind.USER_OUTPUT:
            missing.append(Missing(str(output.kind), output.target or "", "it changes its state"))
        elif not isinstance(output.arg, ConstantArgument):
            found = known[output.arg.name]
            if isinstance(found, Choice | Positions):
                told = "a mask" if isinstance(found, Choice) else "positions"
                missing.append(Missing("its outputs", "", f"{output.arg.name} is {told}"))
            else:
                graph.outputs.append(found)
        elif output.arg.value is not None:
            given = repr(output.arg.value)
            missing.append(Missing(given, "", "outputs are tensors, or None"))
    if not graph.outputs:
        missing.append(Missing("its outputs", "", "none of them is a tensor"))
    for value in graph.inputs:
        if value.dtype not in INPUT_TYPES:
            why = "inputs are float32, int64 or bool"
            missing.append(Missing(str(value.dtype), value.name, why))
    for value in graph.outputs:
        if value.dtype != torch.float32:
            missing.append(Missing(str(value.dtype), value.name, "outputs are float32"))
    for value in dict.fromkeys((*graph.inputs, *graph.producers(), *graph.uses())):
        if len(value.shape) > MOST_DIMS or 0 in value.shape:
            why = f"tensors have up to {MOST_DIMS} dimensions, and elements"
            missing.append(Missing(str(list(value.shape)), value.name, why))
    if missing:
        raise UnsupportedOperators(missing)
    return graph


def _lowered(node: Any, known: dict[str, Any], graph: Graph, missing: list[Missing]) -> Any:
    """What a call gives; where it is missing, a value of that shape, to find what else is."""
    args = tree_map(lambda part: _argument(part, known), tuple(node.args))
    kwargs = tree_map(lambda part: _argument(part, known), dict(node.kwargs))
    module = _module_of(node)
    if node.target is operator.getitem:
        if isinstance(args[0], tuple | list):
            return args[0][args[1]]
        # Of operators that give several tensors, such as maxima and their places, the first.
        if args[1] != 0:
            missing.append(Missing(str(node.args[0].target), module, f"its output {args[1]}"))
        return args[0]
    if not tree_any(is_computed, (args, kwargs)):
        return folded(node.target, Call(graph, node.name, module, args, kwargs, ()))
    sample = node.meta["val"]
    sample = sample[0] if isinstance(sample, tuple | list) else sample
    call = Call(graph, node.name, module, args, kwargs, tuple(sample.shape), sample.dtype)
    before = len(graph.nodes)
    try:
        return lower(node.target, call)
    except Refusal as refusal:
        del graph.nodes[before:]
        missing.append(Missing(str(node.target), module, str(refusal)))
    kind = torch.int64 if sample.dtype == torch.int64 else torch.float32
    return Value(node.name, call.shape, None, kind)


def _rows_read_by(ids: Any) -> int:
    """How many rows the tables have that an input of ids is looked up in; the least of them."""
    tables = [
        user.args[0] for user in ids.users
        if user.target == aten.embedding.default and user.args[1] is ids
    ]  # fmt: skip
    return min((int(table.meta["val"].shape[0]) for table in tables), default=0)


def _argument(part: Any, known: dict[str, Any]) -> Any:
    return known[part.name] if isinstance(part, torch.fx.Node) else part


def _module_of(node: Any) -> str:
    """The path of the innermost module that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""

"""What every node of an engine computes beside what its model does, and where the two part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import ConstantArgument
from torch.utils._pytree import tree_leaves

from sparseinfer.export import compile_onnx
from sparseinfer.export.compile import LEAST, MORE, dense_model
from sparseinfer.export.compile_onnx import onnx_values
from sparseinfer.export.from_onnx import is_onnx
from sparseinfer.export.from_torch import STATE, from_torch
from sparseinfer.export.program import drop_assertions

__all__ = ["NodeComparison", "NodeError", "compare_nodes"]

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Types of values that are compared; bytes stand for values that torch does not compute."""


@dataclass(frozen=True)
class NodeError:
    """One node: the largest error of its output against float64, torch's own, and what is allowed.

    Of an ONNX model they are against the reference's float32, whose own error is how far it moves
    when its inputs are rounded once more. `why` it was not compared, where it was not: the errors
    are then None.
    """

    index: int
    name: str
    op: str
    tensor: str
    shape: tuple[int, ...]
    largest: float | None = None
    error: float | None = None
    torch_error: float | None = None
    allowed: float | None = None
    why: str = ""

    @property
    def diverges(self) -> bool:
        """Whether it is further from the model than is allowed; an error that is NaN is."""
        return self.error is not None and not self.error <= (self.allowed or 0.0)

    def __str__(self) -> str:
        where = f"{self.index:4} {self.name or '(model)'}: {self.op} -> {self.tensor}"
        if self.error is None:
            return f"{where}: {self.why}"
        mark = "  DIVERGES" if self.diverges else ""
        return (
            f"{where}: {self.error:.2g} of {self.largest:.3g}, model {self.torch_error:.2g}, "
            f"allowed {self.allowed:.2g}{mark}"
        )


@dataclass(frozen=True)
class NodeComparison:
    """The nodes that run, in their order.

    Example:
        >>> node = NodeError(0, "fc", "linear", "y", (1, 2), 3.0, 0.5, 1e-7, 1e-6)
        >>> print(NodeComparison([node]).first.name)
        fc
    """

    nodes: list[NodeError]
    reference: str = "the model in float64"

    @property
    def first(self) -> NodeError | None:
        """The first node that diverges; None where none does."""
        return next((node for node in self.nodes if node.diverges), None)

    def to_json(self) -> str:
        return json.dumps([asdict(node) for node in self.nodes], indent=2)

    def __str__(self) -> str:
        first = self.first
        compared = sum(node.error is not None for node in self.nodes)
        head = f"{compared} of {len(self.nodes)} nodes compared with {self.reference}: "
        if first is None:
            head += "none diverges"
        else:
            head += f"{first.name or '(model)'} ({first.op}) is the first that diverges"
        return "\n".join([head, *map(str, self.nodes)])


def compare_nodes(
    nodes: Sequence[Mapping[str, Any]],
    tensors: Sequence[Mapping[str, Any]],
    seen: Sequence[bytes],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tolerance: float | None = None,
) -> NodeComparison:
    """Compare the outputs of nodes, `seen` in a run, with the model's on the same arguments.

    A tensor of an engine has the name of torch.export's node that it stands for, or of the ONNX
    model's value. `tolerance` is what is allowed, as a share of the largest element; None: what the
    model's own rounding explains.

    Raises:
        TypeError, ValueError: the model is not taken, see `sparseinfer.compile`.
    """
    with torch.inference_mode(False), torch.no_grad():
        if is_onnx(model):
            own, exact, reference = onnx_values(model, args, kwargs)
            rounding = compile_onnx.MORE, compile_onnx.LEAST
        else:
            own, exact = _torch_values(model, args, kwargs)
            reference, rounding = "the model in float64", (MORE, LEAST)
        found = []
        for index, (node, elements) in enumerate(zip(nodes, seen, strict=True)):
            if not node["runs"]:
                continue
            tensor = tensors[node["output"]]
            name, shape = tensor["name"], tuple(tensor["shape"])
            row = NodeError(index, node["name"], node["op"], name, shape)
            true = exact.get(name)
            dtype = FLOATS.get(tensor["dtype"])
            if dtype is None:
                row = NodeError(**{**asdict(row), "why": f"it is of {tensor['dtype']}"})
            elif true is None or true.numel() * dtype.itemsize != len(elements):
                row = NodeError(**{**asdict(row), "why": "the model has no such tensor"})
            else:
                y = torch.frombuffer(bytearray(elements), dtype=dtype).view(true.shape)
                row = NodeError(
                    **{**asdict(row), **_errors(y, own[name], true, rounding, tolerance)}
                )
            found.append(row)
    return NodeComparison(found, reference)


def _errors(
    y: Tensor, own: Tensor, true: Tensor, rounding: tuple[float, float], tolerance: float | None
) -> dict[str, float]:
    largest = true.nan_to_num().abs().max().item()
    torch_error = _error(own, true)
    more, least = rounding
    allowed = more * torch_error + least * largest if tolerance is None else tolerance * largest
    return {
        "largest": largest, "error": _error(y, true), "torch_error": torch_error,
        "allowed": allowed,
    }  # fmt: skip


def _error(y: Tensor, true: Tensor) -> float:
    """The largest difference; elements that are the same, NaN among them, have none."""
    wide = y.double()
    same = (wide == true) | (wide.isnan() & true.isnan())
    return torch.where(same, 0.0, (wide - true).abs()).max().item()


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps what each node gives."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        # Of several, as maxima and their places, the engine has the first.
        first = result[0] if isinstance(result, tuple | list) else result
        if isinstance(first, Tensor):
            self.seen[node.name] = first
        return result


def _torch_values(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What every node of a torch model gives, in float32 and in float64."""
    _, program = from_torch(dense_model(model), args, kwargs)
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return _values(program, given, torch.float32), _values(program, given, torch.float64)


def _values(
    program: torch.export.ExportedProgram, given: Sequence[Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """What every node of a program gives on these tensors, by its name, in this type."""
    state = {**program.state_dict, **program.constants}
    left = iter(given)
    inputs: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):
            inputs.append(spec.arg.value)
            continue
        tensor = state[spec.target].detach() if spec.kind in STATE else next(left)
        inputs.append(tensor.to(dtype) if tensor.is_floating_point() else tensor)
    drop_assertions(program.graph_module)
    recorder = _Recorder(program.graph_module)
    recorder.run(*inputs)
    return recorder.seen

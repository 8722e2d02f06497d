"""Operators of ONNX one by one, as engines, against onnx's evaluator and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx_models import check, onnx_model, ops, quick

from sparseinfer.export.errors import UnsupportedOperators

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
node = onnx.helper.make_node

IMAGE = (2, 6, 5, 7)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def floats(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def chain(*steps: Any, x: str = "x") -> list[Any]:
    """Nodes one after the other, from x to y: an operator, its other inputs and its attributes."""
    nodes = []
    for number, (op, others, attributes) in enumerate(steps):
        last = number == len(steps) - 1
        nodes.append(node(op, [x, *others], ["y" if last else f"t{number}"], **attributes))
        x = f"t{number}"
    return nodes


UNARY: dict[str, dict[str, Any]] = {
    "Abs": {}, "Exp": {}, "Erf": {}, "Sin": {}, "Cos": {}, "Floor": {}, "Ceil": {}, "Round": {},
    "Neg": {}, "Softplus": {}, "Mish": {}, "HardSwish": {}, "Tanh": {}, "Selu": {},
    "Elu": {"alpha": 0.3}, "LeakyRelu": {"alpha": 0.2}, "HardSigmoid": {}, "LogSoftmax": {},
    "Softmax": {"axis": 1},
}  # fmt: skip


def test_functions_of_each_element() -> None:
    """All of them of one tensor, which is the engine's one input, each an output."""
    nodes = [node(op, ["x"], [op], **given) for op, given in UNARY.items()]
    nodes.append(node("HardSigmoid", ["x"], ["hard"], alpha=1 / 6))
    nodes += chain(("Abs", (), {}), ("Sqrt", (), {}), ("Add", ("one",), {}),
                   ("Reciprocal", (), {}), ("Log", (), {}))  # fmt: skip
    model = onnx_model(nodes, {"one": np.float32(1)}, (3, 37), 20, (*UNARY, "hard", "y"))
    check(model, 2 * torch.randn(3, 37))


def test_clamps() -> None:
    bounds = {"low": np.float32(-0.4), "high": np.float32(0.9), "six": np.float32(6),
              "zero": np.float32(0)}  # fmt: skip
    given = {"a": ("low", "high"), "b": ("low",), "c": ("", "high"), "d": ("zero", "six"),
             "e": ("zero",)}  # fmt: skip
    nodes = [node("Clip", ["x", *ends], [name]) for name, ends in given.items()]
    nodes.append(node("PRelu", ["x", "slope"], ["p"]))
    model = onnx_model(nodes, {**bounds, "slope": floats(6, 1, 1)}, IMAGE, 17, (*given, "p"))
    check(model, 3 * torch.randn(IMAGE))


def test_arithmetic() -> None:
    """Of tensors and constants, broadcast."""
    row, channel = floats(7), floats(6, 1, 1)
    nodes = [
        node("Sub", ["x", "row"], ["a"]), node("Sub", ["channel", "a"], ["b"]),
        node("Div", ["b", "two"], ["c"]), node("Mul", ["c", "a"], ["d"]),
        node("Max", ["a", "d", "row"], ["e"]), node("Min", ["e", "two"], ["f"]),
        node("Sum", ["f", "x", "d"], ["g"]), node("Pow", ["g", "two"], ["h"]),
        node("Pow", ["two", "f"], ["i"]), node("Div", ["two", "i"], ["j"]),
    ]  # fmt: skip
    constants = {"row": row, "channel": channel, "two": np.float32(2)}
    check(onnx_model(nodes, constants, IMAGE, 17, ("d", "g", "h", "j")), torch.randn(IMAGE))


def test_factors_and_terms_are_of_the_layer_before() -> None:
    w, scale, shift = floats(4, 6, 1, 1), floats(4, 1, 1), floats(1, 4, 1, 1)
    nodes = chain(("Conv", ("w", "b"), {}), ("Mul", ("scale",), {}), ("Add", ("shift",), {}),
                  ("Div", ("two",), {}), ("Relu", (), {}))  # fmt: skip
    constants = {"w": w, "b": floats(4), "scale": scale, "shift": shift, "two": np.float32(2)}
    engine = check(onnx_model(nodes, constants, IMAGE), torch.randn(IMAGE))
    assert ops(engine) == ["conv"]
    nodes = chain(("MatMul", ("w",), {}), ("Mul", ("scale",), {}), ("Add", ("shift",), {}))
    constants = {"w": floats(6, 3), "scale": floats(3), "shift": floats(3)}
    assert ops(check(onnx_model(nodes, constants, (2, 6)), torch.randn(2, 6))) == ["linear"]


@pytest.mark.parametrize("opset", [12, 18])
def test_reductions(opset: int) -> None:
    nodes, names = [], []
    for kind in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"):
        for axes, keep in (([2, 3], 1), ([-1], 0), ([1], 1), (None, 0)):
            name = f"{kind}{len(names)}"
            as_input = opset >= (13 if kind == "ReduceSum" else 18)
            given = {} if axes is None or as_input else {"axes": axes}
            inputs = ["x", f"axes {axes}"] if axes is not None and as_input else ["x"]
            nodes.append(node(kind, inputs, [name], keepdims=keep, **given))
            names.append(name)
    constants = {f"axes {axes}": np.array(axes) for axes in ([2, 3], [-1], [1])}
    engine = check(onnx_model(nodes, constants, IMAGE, opset, names), torch.randn(IMAGE))
    assert ops(engine).count("global_average_pool") == 1


def test_parts() -> None:
    integers = {"one": [1], "four": [4], "end": [2**62], "axis": [1], "minus": [-3], "two": [2],
                "last": [3], "sizes": [1, 2, 3]}  # fmt: skip
    constants: dict[str, Any] = {name: np.array(given) for name, given in integers.items()}
    constants |= {"index": np.array(-1), "order": np.array([[3, 2], [4, 5]])}
    nodes = [
        node("Slice", ["x", "one", "four", "axis"], ["a"]),
        node("Slice", ["x", "minus", "end", "last", "two"], ["b"]),
        node("Split", ["x", "sizes"], ["c", "d", "e"], axis=1),
        node("Split", ["x"], ["f", "g"], axis=1),
        node("Gather", ["x", "index"], ["h"], axis=2),
        node("Gather", ["x", "order"], ["i"], axis=1),
        node("Transpose", ["x"], ["j"], perm=[0, 2, 3, 1]),
        node("Expand", ["f", "wide"], ["k"]), node("Tile", ["a", "times"], ["l"]),
        node("Concat", ["a", "more"], ["m"], axis=2),
    ]  # fmt: skip
    constants |= {"wide": np.array([2, 2, 1, 1, 1]), "times": np.array([1, 2, 1, 3]),
                  "more": floats(2, 3, 2, 7)}  # fmt: skip
    outputs = "abcdefghijklm"
    check(onnx_model(nodes, constants, IMAGE, 17, outputs), torch.randn(IMAGE))


RESIZES: tuple[dict[str, Any], ...] = (
    {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "nearest"},
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
)


@pytest.mark.parametrize("scales", [(2, 2), (1.5, 3)])
def test_resizes(scales: tuple[float, float]) -> None:
    constants = {"scales": np.array([1, 1, *scales], np.float32)}
    nodes = [node("Resize", ["x", "", "scales"], [f"y{number}"], **given)
             for number, given in enumerate(RESIZES)]  # fmt: skip
    outputs = [f"y{number}" for number in range(len(nodes))]
    # onnx's evaluator rounds other sizes otherwise than ONNX Runtime, which `quick` compares with.
    run = check if scales == (2, 2) else quick
    engine = run(onnx_model(nodes, constants, IMAGE, 13, outputs), torch.randn(IMAGE))
    assert set(ops(engine)) == {"resize"} and "ONNX Runtime" in engine.report().error


def test_resizes_that_are_refused() -> None:
    constants = {"half": np.array([1, 1, 0.5, 0.5], np.float32)}
    for given in ({"mode": "cubic"}, {"coordinate_transformation_mode": "align_corners"},
                  {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}):  # fmt: skip
        nodes = [node("Resize", ["x", "", "half"], ["y"], name="grow", **given)]
        with pytest.raises(UnsupportedOperators, match="Resize in 'grow': it "):
            quick(onnx_model(nodes, constants, (1, 2, 8, 8), 13))


def test_channels_to_pixels_and_back() -> None:
    x = torch.randn(2, 8, 4, 6)
    nodes = [node("DepthToSpace", ["x"], ["a"], blocksize=2),
             node("DepthToSpace", ["x"], ["b"], blocksize=2, mode="CRD"),
             node("SpaceToDepth", ["x"], ["c"], blocksize=2)]  # fmt: skip
    check(onnx_model(nodes, {}, x.shape, 17, "abc"), x)


TRANSPOSED: tuple[dict[str, Any], ...] = (
    {"strides": [2, 2]},
    {"strides": [2, 3], "pads": [1, 0, 1, 2], "group": 2},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    {},
)


@pytest.mark.parametrize("given", TRANSPOSED)
def test_transposed_convolutions(given: dict[str, Any]) -> None:
    groups = given.get("group", 1)
    constants = {"w": floats(6, 4 // groups, 3, 3), "b": floats(4)}
    model = onnx_model([node("ConvTranspose", ["x", "w", "b"], ["y"], **given)], constants, IMAGE)
    # onnx's evaluator takes no groups.
    engine = (check if groups == 1 else quick)(model, torch.randn(IMAGE))
    assert ops(engine)[0] == "conv" and "ONNX Runtime" in engine.report().error


def test_transposed_convolutions_that_are_refused() -> None:
    constants = {"w": floats(6, 4, 3, 3)}
    for given in ({"strides": [4, 1]}, {"dilations": [2, 2]}, {"auto_pad": "SAME_UPPER"}):
        nodes = [node("ConvTranspose", ["x", "w"], ["y"], name="grow", **given)]
        with pytest.raises(UnsupportedOperators, match="ConvTranspose in 'grow': it"):
            quick(onnx_model(nodes, constants, IMAGE))


def test_norms() -> None:
    constants = {"scale": floats(7), "bias": floats(7), "channels": floats(6), "shift": floats(6),
                 "both": floats(5, 7)}  # fmt: skip
    nodes = [
        node("LayerNormalization", ["x", "scale", "bias"], ["a"], epsilon=1e-3),
        node("LayerNormalization", ["x", "both"], ["b"], axis=2),
        node("InstanceNormalization", ["x", "channels", "shift"], ["c"]),
    ]  # fmt: skip
    engine = check(onnx_model(nodes, constants, IMAGE, 21, "abc"), torch.randn(IMAGE))
    assert ops(engine).count("layer_norm") == 3


@pytest.mark.parametrize(("opset", "own"), [(18, 3), (20, 3), (21, 6)])
@pytest.mark.parametrize("shape", [IMAGE, (2, 6, 9)])
def test_norms_of_groups(opset: int, own: int, shape: tuple[int, ...]) -> None:
    constants = {"scale": floats(own), "bias": floats(own)}
    names = ["x", "scale", "bias"]
    nodes = [node("GroupNormalization", names, ["y"], num_groups=3, epsilon=1e-3, name="norm")]
    engine = check(onnx_model(nodes, constants, shape, opset), torch.randn(shape))
    assert "layer_norm" in ops(engine)
    groups = 9 - own
    constants = {"scale": floats(groups), "bias": floats(groups)}
    with pytest.raises((UnsupportedOperators, ValueError), match=r"'norm'|Incompatible"):
        quick(onnx_model(nodes, constants, shape, opset))


def test_an_axis_that_is_none_is_refused() -> None:
    for axis in (4, 9):
        nodes = [node("LayerNormalization", ["x", "scale"], ["y"], name="norm", axis=axis)]
        with pytest.raises(UnsupportedOperators, match=f"in 'norm': its axis is {axis}, of 4"):
            quick(onnx_model(nodes, {"scale": floats(7)}, IMAGE, 21))


def test_batch_norm_without_a_convolution() -> None:
    constants = {"scale": floats(6), "bias": floats(6), "mean": floats(6),
                 "var": np.abs(floats(6)) + 0.5}  # fmt: skip
    for shape in ((2, 6), (2, 6, 9), IMAGE):
        model = onnx_model([node("BatchNormalization", ["x", *constants], ["y"])], constants, shape)
        check(model, torch.randn(shape))

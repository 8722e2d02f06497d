"""ONNX files that are damaged or made up: every one is an error that says what is wrong."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_models import onnx_model

from sparseinfer.export.compile import compile
from sparseinfer.export.from_onnx import read_onnx
from sparseinfer.export.from_onnx.simplify import Budget, simplified

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
node = onnx.helper.make_node

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
PRODUCT = [node("MatMul", ["x", "w"], ["y"])]


def refused(model: Any, text: str) -> None:
    with pytest.raises((ValueError, OSError), match=text):
        compile(model, baselines=())


def beside(folder: Path, **change: str) -> Path:
    """A model whose weight lies in another file."""
    model = onnx_model(PRODUCT, {"w": W})
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    if change:
        proto = onnx.load(path, load_external_data=False)
        entries = proto.graph.initializer[0].external_data
        for key, value in change.items():
            own = next((entry for entry in entries if entry.key == key), None) or entries.add()
            own.key, own.value = key, value
        path.write_bytes(proto.SerializeToString())
    return path


def test_weights_beside_the_model(tmp_path: Path) -> None:
    path = beside(tmp_path)
    x = torch.ones(1, 4)
    assert torch.allclose(compile(path, baselines=())(x), x @ torch.from_numpy(W), atol=1e-6)
    refused(onnx.load(path, load_external_data=False), "try the path of the model")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"location": "../w.bin"}, "inside the folder of the model, got '../w.bin'"),
        ({"location": "/etc/passwd"}, "inside the folder of the model"),
        ({"location": "link.bin"}, "inside the folder of the model"),
        ({"location": "a\0b"}, "inside the folder of the model"),
        ({"location": "."}, "directory"),
        ({"location": ""}, "in a file beside the model"),
        ({"location": "none.bin"}, "No such file"),
        ({"offset": "8"}, "got 48 in all"),
        ({"offset": "-8"}, "in a file beside the model"),
        ({"offset": "9" * 30}, "got 48 in all"),
        ({"length": "47"}, "expected 48 bytes of 'w'"),
        ({"length": "much"}, "expected 48 bytes of 'w'"),
    ],
)
def test_data_that_is_not_read(change: dict[str, str], text: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    path = beside(folder, **change)
    (tmp_path / "w.bin").write_bytes(bytes(48))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    refused(path, text)


def test_bytes_that_many_tensors_share(tmp_path: Path) -> None:
    path = beside(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for number in range(3):
        proto.graph.initializer.append(proto.graph.initializer[0])
        proto.graph.initializer[-1].name = f"w{number}"
    path.write_bytes(proto.SerializeToString())
    refused(path, "several that share them")


def test_tensors_of_other_bytes_than_their_shape() -> None:
    for dims in ([4, 4], [2**40, 3], [2**32, 2**32], [-4, -3], [3]):
        model = onnx_model(PRODUCT, {"w": W})
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        refused(model, "of 'w'")
    for kind in (0, 99, onnx.TensorProto.DOUBLE):
        model = onnx_model(PRODUCT, {"w": W})
        model.graph.initializer[0].data_type = kind
        refused(model, "'w'")
    model = onnx_model(PRODUCT, {"w": W})
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].float_data.extend([1.0] * 11)
    refused(model, r"expected 12 bytes or elements of 'w' \[4, 3\], got 11")
    inner = onnx_model([node("Constant", [], ["w"], value=model.graph.initializer[0]), *PRODUCT])
    refused(inner, "expected 12 bytes or elements")


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("ConstantOfShape", ["s"], ["c"]), node("ReduceSum", ["c"], ["r"]),
          node("Add", ["x", "r"], ["y"])], {"s": np.array([10**6, 10**6])}),
        ([node("Expand", ["w", "s"], ["c"]), node("MatMul", ["x", "c"], ["y"])],
         {"w": W, "s": np.array([10**9, 4, 3])}),
        ([node("Tile", ["w", "s"], ["c"]), node("MatMul", ["x", "c"], ["y"])],
         {"w": W, "s": np.array([1, 10**10])}),
        ([node("Range", ["a", "b", "d"], ["c"]), node("Cast", ["c"], ["f"], to=1),
          node("ReduceSum", ["f"], ["r"]), node("Add", ["x", "r"], ["y"])],
         {"a": np.array(0), "b": np.array(10**12), "d": np.array(1)}),
        ([node("Add", ["a", "b"], ["c"]), node("MatMul", ["x", "c"], ["y"])],
         {"a": np.ones((10**5, 1), np.float32), "b": np.ones((1, 10**5), np.float32)}),
        ([node("Pad", ["w", "s"], ["c"]), node("MatMul", ["x", "c"], ["y"])],
         {"w": W, "s": np.array([0, 0, 0, 10**11])}),
        ([*(node("Transpose", ["w"], [f"t{k}"]) for k in range(2000)),
          node("Concat", [f"t{k}" for k in range(2000)], ["c"], axis=1),
          node("MatMul", ["x", "c"], ["y"])], {"w": np.ones((500, 500), np.float32)}),
    ],
    ids=["fill", "expand", "tile", "range", "broadcast", "pad", "copies"],
)  # fmt: skip
def test_constants_are_bounded_by_the_bytes_that_are_there(nodes: Any, constants: Any) -> None:
    model = onnx_model(nodes, constants)
    budget = Budget(10**6)
    try:
        simple = simplified(model, {"x": (1, 4)}, budget)
    except ValueError:
        pass
    else:
        made = [own.const_value.size for own in simple.graph.initializers.values()]
        assert sum(made) <= 10**6 + sum(np.size(given) for given in constants.values())
    refused(model, "expected")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Expand", ["x", "wide"], ["y"])],
        [node("Tile", ["x", "wide"], ["y"])],
        [node("Where", ["condition", "x", "number"], ["y"])],
        [node("Reshape", ["x", "line"], ["long"]), node("Pad", ["long", "ends"], ["y"])],
        [node("ConvTranspose", ["image", "w"], ["y"], strides=[10**6, 10**6])],
    ],
    ids=["expand", "tile", "where", "pad", "transposed"],
)  # fmt: skip
def test_what_a_node_asks_for_is_bounded(nodes: Any) -> None:
    """Of constants that an operator on an input would need."""
    constants = {
        "wide": np.array([10**5, 10**5, 1]), "ends": np.array([0, 0, 0, 0, 0, 10**9]),
        "line": np.array([1, 1, 4]),
        "condition": np.ones((10**4, 1, 1), bool), "number": np.ones((10**4, 1), np.float32),
        "w": np.ones((4, 1, 1, 1), np.float32), "image_shape": np.array([1, 4, 1, 1]),
    }  # fmt: skip
    start = [node("Reshape", ["x", "image_shape"], ["image"])]
    refused(onnx_model([*start, *nodes], constants), "expected")


def test_functions() -> None:
    def function(name: str, inner: list[Any]) -> Any:
        domains = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
        return onnx.helper.make_function("own", name, ["a"], ["c"], inner, domains)

    def twice(inner: str, domain: str) -> list[Any]:
        return [node(inner, ["a"], ["b"], domain=domain), node(inner, ["b"], ["c"], domain=domain)]

    call = [node("f0", ["x"], ["y"], domain="own")]
    last = function("f2", twice("Relu", ""))
    few = [function("f0", twice("f1", "own")), function("f1", twice("f2", "own")), last]
    engine = compile(onnx_model(call, functions=few), baselines=())
    assert engine(-torch.ones(1, 4)).sum() == 0
    many = [function(f"f{k}", twice(f"f{k + 1}", "own")) for k in range(40)]
    refused(onnx_model(call, functions=[*many, function("f40", twice("Relu", ""))]),
            "up to 65536 nodes in a model")  # fmt: skip
    refused(onnx_model(call, functions=[function("f0", twice("f0", "own"))]), "which calls itself")
    refused(
        onnx_model(call, functions=[function(f"g{k}", []) for k in range(600)]), "512 functions"
    )


def test_models_that_are_inconsistent() -> None:
    relu = node("Relu", ["x"], ["y"])
    for model, text in (
        (onnx_model([relu], opset=9), "expected an ONNX model of opset 11 or later, got 9"),
        (onnx_model([relu], opset=99), "opset up to [0-9]+, got 99; try a newer onnx"),
        (onnx_model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]),
                     node("Relu", ["b"], ["y"])]), "in the order in which they run"),
        (onnx_model([node("Add", ["x", "none"], ["y"])]), "which reads 'none' before"),
        (onnx_model([relu, relu]), "expected a valid ONNX model"),
        (onnx_model(PRODUCT, {"w": W}, (1, 5)), "expected a valid ONNX model"),
        (onnx_model([node("Softmax", ["x"], ["y"], axis=7)]), "expected a valid ONNX model"),
        (onnx_model([node("Softmax", ["x"], ["y"], axis="one")]), "its axis is 'one'"),
        (onnx_model([node("Transpose", ["x"], ["y"], perm=[0, 0])]), "expected a"),
        (onnx_model([], outputs=("none",)), "expected"),
        (onnx.ModelProto(), "expected an ONNX model with a graph"),
    ):  # fmt: skip
        refused(model, text)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [0, 0]}, {"strides": [1]}, {"strides": [2**40, 1]}, {"strides": "ab"},
        {"dilations": [10**9, 1]}, {"pads": [-1, 0, 0, 0]}, {"pads": [10**12] * 4}, {"group": 0},
        {"group": 7}, {"kernel_shape": [5, 5]}, {"auto_pad": "FOO"},
    ],
)  # fmt: skip
def test_attributes_of_convolutions(attributes: dict[str, Any]) -> None:
    w = np.ones((1, 1, 3, 3), np.float32)
    refused(onnx_model([node("Conv", ["x", "w"], ["y"], **attributes)], {"w": w}, (1, 1, 8, 8)),
            "expected a")  # fmt: skip


def test_files_that_are_cut_or_changed(tmp_path: Path) -> None:
    """Every one is read, or refused with one of the errors that are documented."""
    whole = onnx_model(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         node("DequantizeLinear", ["q", "s", "z"], ["d"]), *PRODUCT, node("Relu", ["d"], ["r"])],
        {"w": W, "s": np.float32(0.1), "z": np.uint8(3)}, outputs=("y", "r"),
    ).SerializeToString()  # fmt: skip
    path = tmp_path / "m.onnx"
    generator = random.Random(0)
    taken = 0
    for number in range(200):
        changed = bytearray(whole)
        if number % 2:
            del changed[generator.randrange(len(whole)) :]
        else:
            changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        try:
            compile(path, torch.ones(1, 4), baselines=(), check=False)
            taken += 1
        except (ValueError, TypeError) as error:
            assert "expected" in str(error)
    assert 0 < taken < 200
    for content in (b"", b"hello", b"\x08" * 1000):
        path.write_bytes(content)
        refused(path, "expected an ONNX model")
    with pytest.raises(OSError):
        read_onnx(tmp_path)


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(ImportError, match=r"got none named onnx_ir; try pip install"):
        compile("model.onnx")

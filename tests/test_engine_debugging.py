"""What finds a fault in an engine: every node beside torch's, and a drawing of the graph."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import mobilenet_v2, prune, resnet, simple_cnn
from torch import Tensor, nn

import sparseinfer
from sparseinfer.export import compile as compiling
from sparseinfer.export.compile import compile
from sparseinfer.export.drawing import draw
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.file import write_graph

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def quick(model: nn.Module, example: Any) -> Engine:
    return compile(model, example, baselines=(), check=False)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["simple_cnn", "resnet", "mobilenet_v2"])
def test_no_node_diverges(name: str, tmp_path: Path) -> None:
    model = {
        "simple_cnn": simple_cnn,
        "resnet": lambda: resnet("basic", 0.25, 1),
        "mobilenet_v2": lambda: mobilenet_v2(0.35, 2),
    }[name]()
    prune(model, 0.8)
    x = torch.randn(1, 3, 32, 32)
    quick(model, x).save(tmp_path / "model.sinf")
    engine = load_engine(tmp_path / "model.sinf")
    for inputs in (x, torch.randn_like(x)):
        found = engine.compare(model, inputs)
        assert found.first is None
        assert [node.name for node in found.nodes] == [
            node["name"] for node in engine.report().nodes if node["runs"]
        ]
        assert all(node.error is not None for node in found.nodes)
        assert "none diverges" in str(found)


def broken(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, node: int) -> Engine:
    """An engine one of whose weights is another than the model's."""

    def write(graph: Any, *rest: Any) -> Tensor:
        weight = graph.nodes[node].inputs[1]
        weight.constant = weight.constant.clone()
        weight.constant[0] += 1.0
        return write_graph(graph, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(compiling, "write_graph", write)
        return quick(model, x)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("node", "name"), [(0, "0"), (2, "3"), (5, "7"), (6, "10")])
def test_the_first_that_diverges_is_named(
    node: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = simple_cnn(), torch.randn(1, 3, 32, 32)
    engine = broken(model, x, monkeypatch, node)
    found = engine.compare(model, x)
    assert found.first is not None and found.first.name == name
    assert found.first.index == node
    assert f"{name} ({found.first.op}) is the first that diverges" in str(found)
    assert str(found).count("DIVERGES") >= 1
    data = json.loads(found.to_json())
    assert [row["index"] for row in data] == [row.index for row in found.nodes]
    assert engine.compare(model, x, tolerance=1e4).first is None


def test_what_is_no_number_diverges() -> None:
    class Divides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + x)

    x = torch.full((1, 4), float("inf"))
    found = quick(Divides().eval(), torch.ones(1, 4)).compare(Divides().eval(), x)
    assert found.first is None
    found = quick(nn.Sequential(nn.Linear(4, 4)).eval(), torch.ones(1, 4)).compare(
        nn.Sequential(nn.Linear(4, 4, bias=False)).eval(), torch.ones(1, 4)
    )
    assert found.first is not None


def test_tensors_that_the_model_has_not_are_told() -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x + x
            return y, torch.relu(y)

    class Other(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.view(-1), torch.tanh(x)

    x = torch.ones(1, 4)
    found = quick(Returns().eval(), x).compare(Other().eval(), x)
    assert [node.error for node in found.nodes] == [None, None]
    assert "the model has no such tensor" in str(found)
    assert "0 of 2 nodes compared" in str(found)


def test_converted_models_and_programs_are_compared() -> None:
    model, x = simple_cnn(), torch.randn(1, 3, 32, 32)
    prune(model, 0.9)
    engine = quick(model, x)
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    assert engine.compare(sparse, x).first is None
    assert engine.compare(torch.export.export(model, (x,)), x).first is None
    with pytest.raises(ValueError, match="expected"):
        engine.compare(model, torch.zeros(1, 3, 33, 33))


def boxes(text: str) -> list[Any]:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    return root.findall(f"{SVG}g")


def test_a_drawing_has_every_node(tmp_path: Path) -> None:
    model, x = resnet("basic", 0.25, 1), torch.randn(1, 3, 32, 32)
    prune(model, 0.5)
    engine = quick(model, x)
    engine.draw(tmp_path / "graph.svg", engine.profile(x, repeats=2))
    text = (tmp_path / "graph.svg").read_text("utf-8")
    nodes = engine.report().nodes
    found = boxes(text)
    assert len(found) == len(nodes) + 1
    assert "conv + relu" in text and "panel 5" in text and " ms, " in text
    engine.draw(tmp_path / "graph.svg")
    assert " ms, " not in (tmp_path / "graph.svg").read_text("utf-8")
    # An edge for each tensor that a node reads of another node or of the input.
    root = ElementTree.fromstring(text)
    edges = root.findall(f"{SVG}path")
    tensors = {"kind": [tensor.kind for tensor in engine.facts().tensors]}["kind"]
    read = [
        len({k for k in node["operands"] if k is not None and tensors[k] != "constant"})
        for node in nodes
    ]
    assert len(edges) == sum(read)
    # Those that skip nodes do not run over each other.
    lanes = [edge.get("d") for edge in edges if "H" in str(edge.get("d"))]
    assert lanes and len(set(lanes)) == len(lanes)


def test_a_drawing_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval()
    engine = quick(model, torch.zeros(1, 4))
    with pytest.raises(ValueError, match="expected the name of an SVG file"):
        engine.draw("graph.png")
    other = quick(simple_cnn(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"expected a profile of the engine's 1 nodes, got one"):
        engine.draw("graph.svg", other.profile(torch.zeros(1, 3, 32, 32), repeats=1))


def test_names_in_a_drawing_are_text() -> None:
    tensors = [
        {"name": "<x>&\x1b[2J", "kind": "input", "shape": ()},
        {"name": "y", "kind": "computed", "shape": (1, 4)},
    ]
    node = {
        "name": "a" * 300 + '"<script>', "op": "softmax", "activation": "none", "format": "",
        "nnz": 0, "weights": 0, "operands": [0, None], "output": 1, "runs": True,
    }  # fmt: skip
    text = draw([node], tensors)
    assert len(boxes(text)) == 2 and "<script>" not in text and "\x1b" not in text
    assert "aaa..." in text and "scalar" in text

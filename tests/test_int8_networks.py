"""Networks of bytes: what they compute, what is refused, and their files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from int8_graph import evaluate
from networks import mlp, mobilenet_v2, prune, resnet, simple_cnn
from torch import Tensor, nn
from torch.nn import functional as F

import sparseinfer
from sparseinfer.export.calibration import observed_scales
from sparseinfer.export.engine import Engine
from sparseinfer.export.file import write_graph
from sparseinfer.export.from_torch import from_torch
from sparseinfer.export.graph import Graph, Node, Value
from sparseinfer.export.passes import optimize
from sparseinfer.export.passes.byte_nodes import FUNCTIONS, byte_form, split_activations
from sparseinfer.export.passes.quantize import (
    quantize,
    values_to_observe,
    waits_for_its_activation,
)
from sparseinfer.export.signature import Signature
from sparseinfer.kernels.activations import ENGINE_ACTIVATIONS
from sparseinfer.native import seal_model
from sparseinfer.quantize import ActivationScale


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


GIVEN = Signature(["input"], ["input"], {}, {}, 0)


def quantized(model: nn.Module, x: Tensor) -> Graph:
    graph, _ = from_torch(model.eval(), (x,), {})
    optimize(graph)
    split_activations(graph, waits_for_its_activation)
    values = values_to_observe(graph)
    quantize(graph, observed_scales(graph, values, [[x]], GIVEN, 2))
    return graph


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (5, 784)),
    "mlp, one sample": (mlp, (1, 784)),
    "cnn": (simple_cnn, (2, 3, 32, 32)),
    "resnet18": (lambda: resnet("basic", 0.25), (1, 3, 64, 64)),
    "resnet50": (lambda: resnet("bottleneck", 0.25, 2), (2, 3, 49, 49)),
    "mobilenet_v2": (lambda: mobilenet_v2(0.35, 4), (1, 3, 64, 64)),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_networks_give_the_reference_bit_for_bit(name: str, threads: int) -> None:
    make, shape = NETWORKS[name]
    model, x = make(), torch.randn(shape)
    prune(model, 0.8)
    graph = quantized(model, x)
    assert all(value.dtype == torch.float32 for value in (*graph.inputs, *graph.outputs))
    engine = Engine(write_graph(graph, GIVEN.to_json()), threads)
    for own in (x, 3 * torch.randn(shape)):
        assert torch.equal(engine(own), evaluate(graph, [own])[0])


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_bytes_go_from_layer_to_layer() -> None:
    graph = quantized(simple_cnn(), torch.randn(1, 3, 32, 32))
    assert ops(graph) == [
        "quantize", "conv", "max_pool", "conv", "max_pool", "reshape", "linear", "linear",
    ]  # fmt: skip
    pooled = graph.nodes[2]
    assert pooled.inputs[0] is not None and pooled.inputs[0].scale is pooled.output.scale
    assert graph.nodes[-1].output.dtype == torch.float32


def test_residuals_are_bytes_too() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.c = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = F.relu(self.a(x))
            return self.c(F.relu(self.b(a) + a))

    graph = quantized(Block(), torch.randn(1, 3, 9, 9))
    assert ops(graph) == ["quantize", "conv", "conv", "conv"]
    residual = graph.nodes[2].inputs[3]
    assert residual is graph.nodes[1].output and residual.dtype == torch.uint8


def test_an_addition_of_bytes() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
            self.c = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(F.relu(self.a(x)) + F.relu6(self.b(x))))

    x = torch.randn(2, 3, 9, 9)
    graph = quantized(Sum(), x)
    assert ops(graph) == ["quantize", "conv", "conv", "add", "conv"]
    engine = Engine(write_graph(graph, GIVEN.to_json()), 2)
    assert torch.equal(engine(x), evaluate(graph, [x])[0])


class Around(nn.Module):
    """Operators without kernels of int8 around layers that have them, and one between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = F.silu(self.first(F.avg_pool2d(x, 2)))
        b = F.gelu(self.second(F.avg_pool2d(a, 2)))
        mean = F.adaptive_avg_pool2d(b, 1).flatten(1)
        return self.last(mean).softmax(1), mean


def test_other_operators_run_in_floats_around() -> None:
    x = torch.randn(2, 3, 16, 16)
    graph = quantized(Around(), x)
    assert ops(graph) == [
        "average_pool", "quantize", "conv", "average_pool", "conv",
        "global_average_pool", "reshape", "linear", "softmax", "dequantize",
    ]  # fmt: skip
    model = Around().eval()
    engine = sparseinfer.compile(
        model, x, weights="int8", calibration=torch.randn(64, 3, 16, 16), baselines=()
    )
    for exact, y in zip(model(x), engine(x), strict=True):
        assert sparseinfer.quantize.sqnr_db(exact, y) > 20


Function = Callable[[Tensor], Tensor]

BETWEEN: dict[str, tuple[Function, list[str]]] = {
    "hardswish of a depthwise convolution": (
        lambda x: F.hardswish(F.conv2d(x, torch.ones(8, 1, 3, 3), padding=1, groups=8)),
        ["depthwise_conv", "lookup"],
    ),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.1), ["lookup"]),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), ["lookup"]),
    "elu": (F.elu, ["lookup"]),
    "log, of which half is no number": (lambda x: x.clamp(0.01).log(), ["lookup", "lookup"]),
    "average pool": (lambda x: F.avg_pool2d(x, 3, 2, 1), ["average_pool"]),
    "average pool of what is there": (
        lambda x: F.avg_pool2d(x, (2, 3), 1, (1, 1), count_include_pad=False), ["average_pool"],
    ),
    "slices": (lambda x: x[:, :, 1:, ::2], ["slice", "slice"]),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), ["resize"]),
    "concat with what is pooled": (
        lambda x: torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1)[:, 4:12],
        ["max_pool", "concat", "slice"],
    ),
}  # fmt: skip


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, between: Function) -> None:
        super().__init__()
        self.between = between
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", BETWEEN)
def test_what_stands_between_computes_on_bytes(name: str) -> None:
    between, expected = BETWEEN[name]
    x = torch.randn(2, 3, 12, 15)
    graph = quantized(Between(between), x)
    found = ops(graph)
    assert found[:2] == ["quantize", "conv"] and found[-1] == "conv"
    assert sorted(op for op in found[2:-1] if op != "lookup" or "lookup" in expected) == sorted(
        expected
    )
    for threads in (1, 3):
        engine = Engine(write_graph(graph, GIVEN.to_json()), threads)
        for own in (x, 3 * torch.randn_like(x)):
            assert torch.equal(engine(own), evaluate(graph, [own])[0])


def test_a_concatenation_shares_its_scale_with_what_only_it_reads() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.a, self.b = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 3, 1)
            self.last = nn.Conv2d(13, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            return self.last(torch.cat([self.a(x), F.relu(self.b(x)), x], 1))

    x = torch.randn(2, 3, 9, 9)
    graph = quantized(Branches(), x)
    # What the first convolution gives has another reader, and its own scale.
    assert ops(graph) == ["quantize", "conv", "conv", "conv", "lookup", "concat", "conv"]
    for own in (x, 3 * torch.randn_like(x)):
        assert torch.equal(
            Engine(write_graph(graph, GIVEN.to_json()), 2)(own), evaluate(graph, [own])[0]
        )


TABLES = [
    *((name, Node("activation", "", [], Value("y", ()), {}, name)) for name in ENGINE_ACTIVATIONS),
    *((kind, Node("unary", "", [], Value("y", ()), {"kind": kind})) for kind in FUNCTIONS),
]
NUMBERS = {"leaky_relu": [0.25], "elu": [1.5], "clamp": [-0.5, 0.7], "softplus": [2.0, 3.0]}


@pytest.mark.parametrize(("name", "node"), TABLES, ids=[name for name, _ in TABLES])
def test_tables_hold_what_the_engine_computes_of_floats(name: str, node: Node) -> None:
    scale, result = ActivationScale(0.03, 90), ActivationScale(0.02, 128)
    x = Value("x", (256,), None, torch.uint8, scale)
    given = {**node.attributes, "numbers": NUMBERS.get(name, [])} if node.attributes else {}
    y = Value("y", (256,), None, torch.uint8, result)
    (lookup,) = byte_form(Node(node.op, "", [x], y, dict(given), node.activation))
    assert lookup.inputs[1] is not None and lookup.inputs[1].constant is not None
    table = lookup.inputs[1].constant.view(torch.uint8)
    numbers = (torch.arange(256) - 90) * torch.tensor(0.03)
    wide, out = Value("x", (256,)), Value("y", (256,))
    plain = Graph([wide], [Node(node.op, "", [wide], out, dict(given), node.activation)], [out])
    floats = Engine(write_graph(plain, GIVEN.to_json()), 1)(numbers)
    assert isinstance(floats, Tensor)
    some = ~floats.isnan()
    assert some.sum() > 100
    apart = (table.int() - result.quantize(floats.clamp(-1e6, 1e6)).int())[some].abs()
    # A result halfway between two bytes may be rounded to either by a last bit.
    assert apart.max() <= 1 and (apart > 0).sum() <= 2
    assert (table[~some] == 0).all()


def test_depthwise_convolutions_that_floats_are_made_of() -> None:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.Softmax(1)
    model = nn.Sequential(*layers).eval()
    graph = quantized(model, torch.randn(2, 3, 8, 8))
    assert ops(graph) == ["quantize", "conv", "depthwise_conv", "dequantize", "softmax"]
    engine = compiled(model, torch.randn(2, 3, 8, 8), calibration=torch.randn(8, 3, 8, 8))
    assert engine.report().nodes[2]["type"] == "uint8"


def test_a_value_that_bytes_and_floats_are_made_of_is_both() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a = self.a(x)
            return self.b(a), a.softmax(1)

    graph = quantized(Both(), torch.randn(8, 4))
    assert sorted(ops(graph)) == ["dequantize", "linear", "linear", "quantize", "softmax"]


def compiled(model: nn.Module, x: Tensor, **more: Any) -> Engine:
    return sparseinfer.compile(model, x, **({"weights": "int8", "baselines": ()} | more))


def test_compiled_saved_and_loaded(tmp_path: Any) -> None:
    model = simple_cnn()
    prune(model, 0.9)
    x = torch.randn(4, 3, 32, 32)
    engine = compiled(model, x, calibration=[(torch.randn(n, 3, 32, 32),) for n in (9, 4, 1)])
    told = str(engine.report())
    assert "compute on bytes" in told and "dB (SQNR)" in told and "of 20 rows" in told
    assert {node.op for node in engine.profile(x, 2).nodes} == {
        "quantize", "conv", "max_pool", "linear",
    }  # fmt: skip
    engine.save(tmp_path / "net.sinf")
    again = sparseinfer.load_engine(tmp_path / "net.sinf")
    assert torch.equal(again(x), engine(x))
    wide = sparseinfer.compile(model, x, baselines=())
    wide.save(tmp_path / "wide.sinf")
    sizes = [(tmp_path / name).stat().st_size for name in ("net.sinf", "wide.sinf")]
    assert sizes[0] < 0.6 * sizes[1]


def test_golden_outputs_are_the_engines_own(tmp_path: Any) -> None:
    model, x = simple_cnn(), torch.randn(2, 3, 32, 32)
    engine = compiled(model, x, calibration=x, golden=True)
    engine.save(tmp_path / "net.sinf")
    assert sparseinfer.load_engine(tmp_path / "net.sinf").selftest() == 0
    content = bytearray((tmp_path / "net.sinf").read_bytes())
    golden = content.rfind(engine(x).numpy().tobytes())
    assert golden > 0
    memory = torch.zeros(len(content) + 64, dtype=torch.uint8)
    file = memory[-memory.data_ptr() % 64 :][: len(content)]
    content[golden : golden + 4] = np.float32(100).tobytes()
    file[:] = torch.frombuffer(content, dtype=torch.uint8)
    seal_model(file.data_ptr(), len(file))
    with pytest.raises(RuntimeError, match="differs from the file's"):
        Engine(file, 1).selftest()
    with pytest.raises(ValueError, match="expected check=True with golden=True"):
        compiled(model, x, calibration=x, golden=True, check=False)


def test_the_float32_engine_is_raced() -> None:
    x = torch.randn(1, 3, 32, 32)
    engine = sparseinfer.compile(simple_cnn(), x, weights="int8", calibration=x, budget_s=0.02)
    assert [race.other for race in engine.report().races] == [
        "the model as it was", "the float32 engine",
    ]  # fmt: skip


def test_values_that_are_always_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    x = torch.randn(2, 4)
    assert torch.allclose(compiled(model, x, calibration=x)(x), model(x), rtol=1e-3)


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({}, ValueError, "expected calibration data"),
        ({"calibration": []}, ValueError, "expected calibration data, got no batch"),
        ({"calibration": 7}, TypeError, "expected calibration data"),
        ({"calibration": torch.zeros(0, 4)}, ValueError, "batch 0 of the calibration data"),
        ({"calibration": torch.zeros(3, 5)}, ValueError, r"got \[3, 5\].*try batches like"),
        ({"calibration": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "try .float()"),
        ({"calibration": [torch.ones(3, 4).to_sparse()]}, TypeError, "a dense tensor .*to_dense"),
        ({"calibration": torch.full((3, 4), torch.nan)}, ValueError, "NaN or Inf.*that was input"),
        ({"calibration": torch.full((3, 4), 1e30)}, ValueError, "scale is 2.*that was "),
        ({"calibration": torch.full((3, 4), 1e-44)}, ValueError, "scale is 2.*that was input"),
        ({"weights": "float32", "calibration": torch.zeros(3, 4)}, ValueError, "expected no cal"),
        ({"weights": "int4"}, NotImplementedError, "not built yet"),
        ({"weights": "int4"}, NotImplementedError, "not built yet"),
        ({"activations": "float32"}, NotImplementedError, "not built yet"),
        ({"weights": "int7"}, ValueError, "expected weights of"),
    ],
)
def test_what_is_refused(more: dict[str, Any], error: type[Exception], match: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with pytest.raises(error, match=match):
        compiled(model, torch.randn(2, 4), **more)


def test_weights_that_cannot_be_rounded() -> None:
    model = nn.Linear(4, 3).eval()
    with torch.no_grad():
        model.weight[1, 2] = torch.inf
    with pytest.raises((ValueError, RuntimeError)):
        compiled(model, torch.randn(2, 4), calibration=torch.randn(8, 4), check=False)
    with pytest.raises(
        ValueError, match="finite outputs for the example, got 2 NaN or Inf among 6"
    ):
        compiled(model, torch.randn(2, 4), calibration=torch.randn(8, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_large_networks(name: str) -> None:
    model = resnet("bottleneck", 1.0) if name == "resnet50" else mobilenet_v2(1.0)
    prune(model, 0.9)
    x = torch.randn(1, 3, 224, 224)
    graph = quantized(model, x)
    engine = Engine(write_graph(graph, GIVEN.to_json()), 2)
    assert torch.equal(engine(x), evaluate(graph, [x])[0])

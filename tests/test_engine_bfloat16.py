"""Engines of bfloat16: what they compute, what is narrow in them, and what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from marks import some_slow
from torch import Tensor, nn

from sparseinfer.export.bfloat16 import bfloat16_error
from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from tests.networks import resnet, simple_cnn

ACTIVATIONS = [None, "bfloat16"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def made(model: nn.Module, x: Tensor, activations: str | None, **more: Any) -> Engine:
    return compile(
        model.eval(), x, weights="bfloat16", activations=activations, baselines=(), **more
    )


def dtypes(engine: Engine, kind: str) -> list[str]:
    return [tensor.dtype for tensor in engine.facts().tensors if tensor.kind == kind]


NETWORKS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 10)), (3, 40)),
    "one": lambda: (nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 10)), (1, 40)),
    "cnn": lambda: (simple_cnn(), (2, 3, 32, 32)),
    "resnet": lambda: (resnet("basic", 0.25, 1), (1, 3, 64, 64)),
    "signal": lambda: (
        nn.Sequential(nn.Conv1d(4, 8, 3), nn.SiLU(), nn.Conv1d(8, 4, 1)),
        (2, 4, 20),
    ),
}


@pytest.mark.parametrize("name", some_slow(NETWORKS, "cnn", "one"))
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_networks(name: str, activations: str | None, tmp_path: Path) -> None:
    model, shape = NETWORKS[name]()
    x = torch.randn(shape)
    engine = made(model, x, activations)
    assert "outputs of bfloat16 within" in str(engine.report())
    exact = model.double()(x.double())
    y = engine(x)
    assert (y.double() - exact).abs().max() <= 2**-5 * exact.abs().max()
    assert not torch.equal(y, compile(model.float(), x, baselines=())(x))
    engine.save(tmp_path / "model.sinf")
    for threads in (1, 3):
        loaded = load_engine(tmp_path / "model.sinf", threads=threads)
        assert torch.equal(loaded(x), y)


def test_weights_alone_compute_in_float32() -> None:
    """As a float32 engine of weights that bfloat16 holds, to the last bit."""
    model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(layer.weight.bfloat16())
    for rows in (1, 5):
        x = torch.randn(rows, 40)
        engine = made(model, x, None)
        assert torch.equal(engine(x), compile(model, x, baselines=())(x))
        assert {node["type"] for node in engine.report().nodes} == {"float32"}
    weights = [dtype for dtype in dtypes(engine, "constant") if dtype == "bfloat16"]
    assert len(weights) == 2 and set(dtypes(engine, "computed")) == {"float32"}


def test_pairs_multiply_what_is_rounded() -> None:
    """Small integers are exact in bfloat16, and so are their sums in float32."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
    x = torch.randint(-1, 2, (2, 4, 9, 9)).float()
    engine = made(model, x, "bfloat16")
    # What is between the two is rounded: here to integers below 256 at most.
    hidden = model[1](model[0](x))
    assert torch.equal(hidden, hidden.bfloat16().float())
    assert torch.equal(engine(x), model(x))


class Block(nn.Module):
    """A chain, a residual, and a value that is an output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        c = torch.relu(self.c(b) + a)
        return self.d(c), c


def test_values_between_nodes_of_pairs_are_bfloat16() -> None:
    model, x = Block().eval(), torch.randn(2, 4, 7, 7)
    engine = made(model, x, "bfloat16", dynamic="batch")
    computed = [tensor for tensor in engine.facts().tensors if tensor.kind == "computed"]
    # `a` is a residual, which is added in float32; `c` an output.
    assert [tensor.dtype for tensor in computed] == ["float32", "bfloat16", "float32", "float32"]
    assert computed[1].bytes == 2 * 2 * 8 * 7 * 7
    assert [node["type"] for node in engine.report().nodes] == ["bfloat16"] * 4
    assert "4 of them multiply bfloat16, 0 float32" in str(engine.report())
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 7, 7)
        for y, expected in zip(engine(x), model(x), strict=True):
            assert (y - expected).abs().max() <= 2**-5 * expected.abs().max()
    found = engine.compare(model, x, tolerance=2**-5)
    assert found.first is None and len(found.nodes) == 4


def test_the_float32_engine_is_raced_and_golden_outputs_are_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    engine = compile(
        model, torch.randn(2, 16), weights="bfloat16", activations="bfloat16", budget_s=0.02,
        golden=True,
    )  # fmt: skip
    assert [race.other for race in engine.report().races] == [
        "the model as it was", "the float32 engine",
    ]  # fmt: skip
    engine.save(tmp_path / "model.sinf")
    assert load_engine(tmp_path / "model.sinf").selftest() <= 1


def test_outputs_that_rounding_does_not_explain() -> None:
    model, other = nn.Linear(16, 4).eval(), nn.Linear(16, 4).eval()
    x = torch.randn(2, 16)
    engine = made(other, x, "bfloat16")
    with torch.no_grad(), pytest.raises(RuntimeError, match="expected outputs of bfloat16 within"):
        bfloat16_error(model, engine, (x,), {}, [model.double()(x.double())])


def test_wide_weights_stay_float32() -> None:
    model = nn.Sequential(nn.Linear(4, 66_000), nn.ReLU(), nn.Linear(66_000, 2)).eval()
    engine = made(model, torch.randn(1, 4), "bfloat16")
    assert [node["type"] for node in engine.report().nodes] == ["bfloat16", "float32"]
    assert set(dtypes(engine, "computed")) == {"float32"}


@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"weights": "float32", "activations": "bfloat16"}, ValueError, "got float32 and bfloat16"),
        ({"weights": "bfloat16", "calibration": [torch.ones(1, 4)]}, ValueError, "no calibration"),
        ({"weights": "bfloat16", "activations": "int8"}, ValueError, "got bfloat16 and int8"),
        ({"weights": "int4"}, NotImplementedError, "int4"),
    ],
)
def test_what_is_refused(more: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        compile(nn.Linear(4, 2).eval(), torch.ones(1, 4), baselines=(), **more)

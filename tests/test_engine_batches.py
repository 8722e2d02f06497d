"""Engines whose batch may vary: what they compute, what they keep, and which models are refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.plans import MOST_PLANS


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def quick(model: nn.Module, example: Any, dynamic: Any = "batch", **options: Any) -> Engine:
    return compile(model.eval(), example, baselines=(), dynamic=dynamic, **options)


class Network(nn.Module):
    """Convolutions, a residual, pooling, concatenation and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.norm(self.first(x)))
        y = y + self.deep(y)
        y = torch.cat([nn.functional.max_pool2d(y, 2), nn.functional.avg_pool2d(y, 2)], 1)
        y = self.last(y.mean((2, 3)))
        return torch.softmax(y, 1), y


MODELS = {
    "mlp": (nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)), (12,)),
    "tokens": (nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)), (5, 6)),
    "network": (Network(), (3, 8, 8)),
    "signal": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(40, 3)), (2, 12)),
    "flat": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Softmax(1)), (2, 5, 5)),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "own"), [*((name, 1) for name in MODELS), ("mlp", 4), ("network", 4)]
)
def test_every_batch(name: str, own: int, tmp_path: Path) -> None:
    model, shape = MODELS[name]
    engine = quick(model, torch.randn(own, *shape))
    engine.save(tmp_path / "model.sinf")
    fixed = compile(model, torch.randn(own, *shape), baselines=())
    assert len(engine.file) == len(fixed.file)
    for each in (engine, load_engine(tmp_path / "model.sinf", threads=2)):
        for batch in (own, 1, 2, 3, 17, own):
            x = torch.randn(batch, *shape)
            given, expected = each(x), model(x)
            pairs = zip(given, expected, strict=True) if name == "network" else [(given, expected)]
            for y, true in pairs:
                assert y.shape == true.shape and torch.allclose(y, true, atol=1e-5)
    with pytest.raises(ValueError, match="try to compile an engine for that shape"):
        fixed(torch.randn(own + 1, *shape))


def test_a_batch_is_what_an_engine_of_it_computes() -> None:
    model, shape = MODELS["network"]
    engine = quick(model, torch.randn(2, *shape))
    for batch in (1, 3, 8):
        x = torch.randn(batch, *shape)
        own = compile(model, x, baselines=())
        for y, expected in zip(engine(x), own(x), strict=True):
            assert torch.equal(y, expected)


def test_int8_of_every_batch() -> None:
    model, shape = MODELS["network"]
    x = torch.randn(9, *shape)
    calibration = torch.randn(32, *shape)
    engine = quick(model, x[:2], weights="int8", calibration=calibration)
    one = compile(model, x[:1], baselines=(), weights="int8", calibration=calibration)
    for batch in (1, 2, 5, 9):
        for index, y in enumerate(engine(x[:batch])):
            alone = torch.cat([one(x[at : at + 1])[index] for at in range(batch)])
            assert torch.allclose(y, alone, atol=1e-6)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, fixed: Tensor, *, more: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x) + more, torch.relu(fixed)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "dynamic",
    [
        {"x": {0: "batch"}, "more": {0: "batch"}},
        {"x": {0: Dim("b", max=9)}, "more": {0: Dim("b")}, "fixed": None},
        {"x": (Dim.DYNAMIC, None), "more": [Dim.AUTO, None]},
    ],
)
def test_inputs_that_vary_beside_one_that_does_not(dynamic: Any) -> None:
    model = Two().eval()
    fixed = torch.randn(3, 2)
    example = {"more": torch.randn(2, 6), "x": torch.randn(2, 6), "fixed": fixed}
    engine = quick(model, example, dynamic)
    assert f"any batch up to {engine.most_batch:,}" in str(engine.report())
    assert engine.most_batch == (9 if "fixed" in dynamic else 2**31 - 1)
    for batch in (1, 2, 5):
        x, more = torch.randn(batch, 6), torch.randn(batch, 6)
        for y, expected in zip(
            engine(x, fixed, more=more), model(x, fixed, more=more), strict=True
        ):
            assert torch.allclose(y, expected, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"expected one batch, got (2 of x, 3 of more|3 of more, 2 of x)"
    ):
        engine(torch.randn(2, 6), fixed, more=torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"expected \[3, 2\] for fixed, got \[2, 2\]"):
        engine(torch.randn(2, 6), fixed[:2], more=torch.randn(2, 6))


def test_batches_that_are_refused() -> None:
    engine = quick(nn.Linear(4, 2), torch.randn(2, 4), {"input": {0: Dim("batch", max=6)}})
    assert engine.takes("input", (6, 4)) and not engine.takes("input", (7, 4))
    for shape in ((0, 4), (7, 4), (2, 5), (2, 4, 1), (4,), ()):
        with pytest.raises(ValueError, match=r"of any batch from 1 to 6, got "):
            engine(torch.zeros(shape))
    # A call that was refused leaves the engine as it was.
    assert engine(torch.zeros(6, 4)).shape == (6, 2)


class Calls(nn.Module):
    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn
        self.register_buffer("table", torch.randn(2, 6))

    def forward(self, x: Tensor) -> Any:
        return self.fn(self, x)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (lambda own, x: torch.relu(x).reshape(6, -1), "reshape in '' gives"),
        (lambda own, x: torch.relu(x.reshape(3, 4)), "does not at 1"),
        (lambda own, x: torch.relu(x) + own.table, "does not at 1|reads|gives|is y"),
        (lambda own, x: torch.cat([x, own.table]).relu(), "gives"),
        (lambda own, x: torch.relu(x.squeeze()), "gives|operations"),
        (lambda own, x: torch.relu(x) if len(x) < 3 else torch.tanh(x), "there"),
        (lambda own, x: torch.cat([x] * len(x), 1).relu(), "there"),
        (lambda own, x: torch.relu(x) + x.new_full(x.shape, float(len(x))), "reads"),
    ],
)  # fmt: skip
def test_models_that_do_not_keep_the_batch_are_refused(fn: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as found:
        quick(Calls(fn), torch.randn(2, 6))
    assert "try dynamic=None" in str(found.value)
    assert quick(Calls(fn), torch.randn(2, 6), None)


def test_reshapes_that_fold_the_batch() -> None:
    model = Calls(lambda own, x: torch.softmax(torch.relu(x).reshape(-1, 3), 1).reshape(-1, 6))
    engine = quick(model, torch.randn(2, 6))
    for batch in (1, 2, 7):
        x = torch.randn(batch, 6)
        assert torch.allclose(engine(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("dynamic", "error", "told"),
    [
        (True, TypeError, "expected dynamic as 'batch'"),
        ("time", TypeError, "expected dynamic as 'batch'"),
        ({"y": {0: "batch"}}, ValueError, "expected dynamic of input, got 'y'"),
        ({"input": {1: "batch"}}, ValueError, "got dimension 1 of input"),
        ({"input": 0}, TypeError, "expected {0: 'batch'} for input"),
        ({"input": {0: 4}}, TypeError, "got 4"),
        ({"input": {}}, ValueError, "expected dynamic of an input, got none"),
        ({"input": {0: Dim("batch", max=3)}}, ValueError, "a batch up to 3, got 4"),
    ],
)
def test_what_is_asked_for(dynamic: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        quick(nn.Linear(4, 2), torch.randn(4, 4), dynamic)


def test_examples_without_one_batch() -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x.relu(), y.relu()

    for y in (torch.randn(3, 4), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="expected one batch as dimension 0 of the example"):
            quick(Adds(), (torch.randn(2, 4), y))
    with pytest.raises(ValueError, match="expected one batch, got a, b"):
        quick(Adds(), (torch.randn(2, 4), torch.randn(2, 4)), {"x": {0: "a"}, "y": {0: "b"}})


def test_plans_are_kept_and_bounded() -> None:
    engine = quick(nn.Linear(4, 2), torch.randn(2, 4))
    first = engine._plans.at(2)
    for batch in range(1, MOST_PLANS + 1):
        engine(torch.zeros(batch, 4))
    assert engine._plans.at(2) is first
    third = engine._plans.at(3)
    for batch in range(20, 20 + MOST_PLANS):
        engine(torch.zeros(batch, 4))
    assert engine._plans.at(3) is not third and len(engine._plans._kept) == MOST_PLANS


def test_batches_from_many_threads() -> None:
    model, shape = MODELS["network"]
    engine = quick(model, torch.randn(2, *shape), threads=1)
    x = torch.randn(12, *shape)
    expected = [engine(x[: 1 + batch])[1] for batch in range(12)]
    wrong = []

    def calls(first: int) -> None:
        for at in range(40):
            batch = (first + 5 * at) % 12
            if not torch.equal(engine(x[: 1 + batch])[1], expected[batch]):
                wrong.append(batch)

    threads = [threading.Thread(target=calls, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_looks_into_an_engine_takes_any_batch(tmp_path: Path) -> None:
    model, shape = MODELS["mlp"]
    engine = quick(model, torch.randn(2, *shape), golden=True)
    x = torch.randn(5, *shape)
    work = []
    for batch in (2, 5):
        nodes = engine.profile(torch.randn(batch, *shape)).nodes
        work.append(sum(node.gflops * node.ms for node in nodes))
    assert work[1] == pytest.approx(2.5 * work[0])
    assert engine.compare(model, x).first is None
    engine.save(tmp_path / "model.sinf")
    loaded = load_engine(tmp_path / "model.sinf")
    assert torch.equal(loaded(x), engine(x)) and loaded.selftest() <= 1
    assert loaded.facts().most_batch == loaded.most_batch == 2**31 - 1


def test_exported_programs_of_any_batch() -> None:
    model, shape = MODELS["mlp"]
    x = torch.randn(2, *shape)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch")},))
    engine = compile(program, baselines=(), dynamic="batch")
    y = torch.randn(7, *shape)
    assert torch.allclose(engine(y), model(y), atol=1e-6)


class Classed(nn.Module):
    """A token of the model's own before those of the input, of which the outputs are apart."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.token, self.axis = nn.Parameter(torch.randn(1, 1, 1)), axis

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = [*x.shape]
        shape[self.axis] = 1
        y = torch.cat([self.token.expand(shape), x], self.axis)
        return y.narrow(self.axis, 0, 1).tanh(), y.narrow(self.axis, 1, x.shape[self.axis]).tanh()


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_class_token_is_the_models_own_whatever_the_input_holds(bad: float, axis: int) -> None:
    model = Classed(axis)
    engine = quick(model, torch.randn(2, 4, 6))
    for batch in (1, 2, 3):
        x = torch.randn(batch, 4, 6)
        x[-1] = bad
        given, own = engine(x), model(x)
        for y, true in zip(given, own, strict=True):
            assert torch.allclose(y, true, atol=1e-6, equal_nan=True)
        assert given[0].isfinite().all()


class Windows(nn.Module):
    """Attention in windows of tokens, of which a mask hides another part of each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.projection, self.count = nn.Linear(8, 24), count
        self.register_buffer("mask", torch.randn(count, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.projection(x).view(batch * self.count, 3, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mask = self.mask.repeat(batch, 1, 1, 1)
        y = nn.functional.scaled_dot_product_attention(*parts.unbind(0), attn_mask=mask)
        return y.transpose(1, 2).reshape(batch, length, 8)


@pytest.mark.parametrize(("own", "count"), [(1, 4), (2, 4), (3, 2)])
def test_masks_of_windows_repeat_with_the_samples(own: int, count: int) -> None:
    model = Windows(count)
    engine = quick(model, torch.randn(own, 3 * count, 8))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3 * count, 8)
        assert torch.allclose(engine(x), model(x), atol=1e-5)
        x[0] = torch.nan
        assert torch.allclose(engine(x)[1:], model(x)[1:], atol=1e-5)

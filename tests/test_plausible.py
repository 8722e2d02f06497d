"""Nonsense that a busy machine makes up: it is measured again, never kept, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import nn

from sparseinfer import SparseLinear, report
from sparseinfer.convert import guarantee
from sparseinfer.convert.conversion import Options, convert
from sparseinfer.convert.platform import Platform
from sparseinfer.convert.plausible import beyond_layers, beyond_zeros, sums_up
from sparseinfer.convert.scan import scan
from sparseinfer.timing import clock as clocks
from sparseinfer.timing.measure import Comparison, compare
from sparseinfer.timing.tuning import Cache, Tuner

PROBLEM = {"label": "linear 8x8 panel"}


class Clock(clocks.Clock):
    """Time that passes as layers run, and as others take the processor away."""

    def __init__(self) -> None:
        self.now = self.ran = 0.0
        self.taken = 0

    def run(self, seconds: float, others: float = 0.0) -> None:
        self.now += seconds + others
        self.ran += seconds
        self.taken += others > 0

    def wall(self) -> float:
        return self.now

    def thread(self) -> float:
        return self.ran

    def preemptions(self) -> int:
        return self.taken

    def load(self) -> float | None:
        return 5.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_interrupted_rounds_are_run_again(clock: Clock) -> None:
    """Every third dense call is taken 12 ms from: none of those counts."""
    calls = 0

    def dense() -> None:
        nonlocal calls
        calls += 1
        clock.run(0.001, others=0.012 if calls % 3 == 0 else 0.0)

    watch = clocks.Watch(clock)
    found = compare(dense, lambda: clock.run(0.0005), budget_s=1.0, clock=clock, watch=watch)
    assert (found.speedup, found.low, found.high, found.doubt) == (
        pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0), "",
    )  # fmt: skip
    assert watch.share > 0.5


def test_where_every_round_is_interrupted_the_comparison_is_in_doubt(clock: Clock) -> None:
    watch = clocks.Watch(clock)
    found = compare(
        lambda: clock.run(0.001, others=0.86), lambda: clock.run(0.001), budget_s=1e9,
        clock=clock, watch=watch,
    )  # fmt: skip
    assert found.doubt.endswith("rounds were interrupted") and not found.lasts(1.05)
    assert watch.share > 0.9


def test_on_one_thread_what_others_took_is_left_out(clock: Clock) -> None:
    watch = clocks.Watch(clock)
    found = compare(
        lambda: clock.run(0.002, others=0.86), lambda: clock.run(0.001), budget_s=1e9,
        clock=clock, watch=watch, alone=True,
    )  # fmt: skip
    assert found.speedup == pytest.approx(2.0) and found.doubt == "" and watch.share > 0.9


def test_waiting_is_no_interruption(clock: Clock) -> None:
    """A thread that sleeps has no processor either, but nobody took it away."""
    watch = clocks.Watch(clock)

    def sleep() -> None:
        clock.now += 1.0

    assert watch.run(sleep) == (None, False) and watch.share == 0.0


def test_an_interrupted_single_call_does_not_tell_how_often_to_repeat(clock: Clock) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock.run(1e-6, others=0.01 if calls == 2 else 0.0)

    compare(call, call, budget_s=0.0, clock=clock)
    assert calls > 3 * 100  # samples of one call of a microsecond would be all clock


def test_what_zeros_cannot_give_is_in_doubt() -> None:
    model = nn.Linear(256, 256)
    model.weight.data = sparse_weight((256, 256), 0.25)
    (layer,) = scan(model)
    cpu = torch.device("cpu")

    def told(speedup: float, device: torch.device = cpu) -> str:
        found = Comparison(speedup, 1.0, speedup, speedup, speedup, 8)
        return beyond_zeros(found, layer, 64, 1, "panel", device)

    assert told(2.0) == told(8.0) == told(0.5) == ""
    assert told(860.0) == "860x is more than skipping 75% zeros can give"
    assert "far less than the" in told(0.01)
    assert told(860.0, torch.device("cuda")) and not told(0.01, torch.device("cuda"))


def test_what_layers_cannot_give_is_in_doubt() -> None:
    found = Comparison(9.0, 1.0, 9.0, 8.0, 10.0, 8)
    assert beyond_layers(found, [2.0, 3.0]) and not beyond_layers(found, [5.0])
    assert not beyond_layers(found, [])
    assert sums_up([0.1, 0.2], 0.2) and not sums_up([12.0], 0.2)


def test_a_doubted_comparison_is_measured_again_and_the_lesser_gain_counts(
    clock: Clock, tmp_path: Path
) -> None:
    seconds = iter([860e-3] * 10 + [500e-3] * 100)
    tuner = Tuner(1, torch.device("cpu"), 1.05, cache=Cache(tmp_path), clock=clock)
    found = tuner.compare(
        PROBLEM, lambda: (lambda: clock.run(next(seconds)), lambda: clock.run(1e-3)), 10.0,
        implausible=lambda found: "nonsense" if found.speedup > 100 else "",
    )  # fmt: skip
    assert found.doubt == "nonsense" and found.speedup < 860 and tuner.doubted == 1
    tuner.flush()
    assert list(tmp_path.iterdir()) == []
    assert tuner.recall(PROBLEM) == found  # for this conversion


def test_what_is_believable_the_second_time_is_kept(clock: Clock, tmp_path: Path) -> None:
    tries = 0

    def implausible(found: Comparison) -> str:
        nonlocal tries
        tries += 1
        return "nonsense" if tries == 1 else ""

    tuner = Tuner(1, torch.device("cpu"), 1.05, cache=Cache(tmp_path), clock=clock)
    found = tuner.compare(
        PROBLEM, lambda: (lambda: clock.run(2e-3), lambda: clock.run(1e-3)), 10.0,
        implausible=implausible,
    )  # fmt: skip
    tuner.flush()
    assert found.doubt == "" and tuner.doubted == 0 and len(list(tmp_path.iterdir())) == 1


class Net(nn.Module):
    """Two equal layers; `times` gives a layer's seconds, and what others take, at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.a.weight.data = sparse_weight((32, 32), 0.3)
        self.b.weight.data = sparse_weight((32, 32), 0.6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def _convert(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, dense: Any, folder: Path, **options: Any
) -> Any:
    plain, sparse = nn.Linear.forward, SparseLinear.forward

    def timed_dense(self: nn.Linear, input: torch.Tensor) -> torch.Tensor:
        clock.run(*dense(self))
        return plain(self, input)

    def timed_sparse(self: SparseLinear, input: torch.Tensor) -> torch.Tensor:
        clock.run(1e-3)
        return sparse(self, input)

    monkeypatch.setattr(nn.Linear, "forward", timed_dense)
    monkeypatch.setattr(SparseLinear, "forward", timed_sparse)
    x = torch.randn(4, 32)
    return report(convert(Net(), Options(x, cache=folder, threads=2, **options), Platform(clock)))


def test_a_quiet_machine_is_not_called_busy(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    found = _convert(monkeypatch, clock, lambda layer: (2e-3,), tmp_path)
    assert found.totals["sparse_layers"] == 2 and found.warning == "" and found.doubted == 0
    assert len(list(tmp_path.iterdir())) == found.measured == 3


def test_nonsense_of_a_busy_machine_is_not_believed_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    """Every dense call waits for others: 860x in every round, with the narrowest interval."""
    found = _convert(monkeypatch, clock, lambda layer: (2e-3, 0.858), tmp_path)
    assert found.totals["sparse_layers"] == 0
    assert "measured 860x, which is not believed: 860x is more than skipping" in (
        found.layers[0].reason
    )
    assert found.warning.startswith("This machine is busy: other programs had the processor for ")
    assert "load average 5.0" in found.warning and "are in doubt, and are not kept" in found.warning
    assert list(tmp_path.iterdir()) == []


def test_who_asks_for_less_than_a_gain_gets_a_layer_that_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    found = _convert(
        monkeypatch, clock, lambda layer: (2e-3, 0.858), tmp_path, min_speedup=0.5, verify=False
    )
    assert found.totals["sparse_layers"] == 2 and list(tmp_path.iterdir()) == []


def test_of_equal_layers_the_one_that_took_long_is_timed_again(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    """A slow spell that no counter tells of, while the first layer is timed alone."""
    calls = 0

    def dense(layer: nn.Linear) -> tuple[float]:
        nonlocal calls
        calls += 1
        return (16e-3 if calls < 14 else 2e-3,)

    found = _convert(monkeypatch, clock, dense, tmp_path)
    assert [layer.dense_ms for layer in found.layers] == [pytest.approx(2.0)] * 2
    assert found.doubted == 0


def test_layers_that_do_not_add_up_to_the_model_are_never_kept(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    monkeypatch.setattr(guarantee.Guarantee, "dense_ms", lambda self: 0.2)
    found = _convert(monkeypatch, clock, lambda layer: (6e-3,), tmp_path)
    assert found.doubted >= 2 and "do not fit each other" in found.warning
    kept = [json.loads(path.read_text())["problem"] for path in tmp_path.iterdir()]
    assert all("model" in problem for problem in kept)

"""The turns of the peers, seen from a worker and from the parent, without a process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cases import ConvCase, LinearCase, Pattern
from benchmarks.layer_data import LayerData, WrongResultError
from benchmarks.peers import worker
from benchmarks.peers.engines.interface import Layer, Prepared
from benchmarks.peers.process import PeerError
from benchmarks.peers.turns import TurnPlan, Turns, take_turns

# ---- the child's side


class OneLayer:
    """An engine whose calls are written down."""

    def __init__(self, threads: int = 1) -> None:
        self.log: list[int] = []

    def version(self) -> str:
        return "one"

    def prepare(self, layer: Layer) -> Prepared:
        calls = [lambda i=i: self.log.append(i) for i in range(layer.copies(layer.weight.nbytes))]
        return Prepared(calls, lambda: np.zeros(layer.out_shape, np.float32), 1)


def prepared_server(
    tmp_path: Path, cold_bytes: int
) -> tuple[worker.Server, OneLayer, dict[str, Any]]:
    weight, bias, x = np.ones((4, 8), np.float32), np.ones(4, np.float32), np.ones((2, 8))
    for name, array in (("weight", weight), ("bias", bias), ("x", x.astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", array)
    engine = OneLayer()
    server = worker.Server(engine)
    reply = server.answer(
        {
            "do": "prepare", "arrays": str(tmp_path),
            "result": str(tmp_path / "y.npy"), "op": "linear", "stride": 1, "padding": 0,
            "cold_bytes": cold_bytes,
        }
    )  # fmt: skip
    return server, engine, reply


def test_result_is_written_and_every_copy_runs_before_any_is_timed(tmp_path: Path) -> None:
    _, engine, reply = prepared_server(tmp_path, cold_bytes=512)
    assert np.load(tmp_path / "y.npy").shape == (2, 4)
    # 128 bytes of weight: four copies fill 512 bytes, a fifth exceeds them, one more is for turns.
    assert reply["copies"] == 6 and engine.log[:6] == [0, 1, 2, 3, 4, 5]
    assert reply["seconds"] > 0 and reply["quiet"]


def test_turns_go_on_with_the_copy_after_the_last(tmp_path: Path) -> None:
    server, engine, _ = prepared_server(tmp_path, cold_bytes=128)
    assert set(engine.log) == {0, 1, 2}
    next_copy = (engine.log[-1] + 1) % 3
    engine.log.clear()
    for _ in range(2):
        reply = server.answer({"do": "time", "inner": 2, "samples": 2, "warm": 0.0})
        assert 0 < reply["minimum"] <= reply["median"]
    assert engine.log == [(next_copy + i) % 3 for i in range(8)]


def test_warm_up_calls_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def takes(seconds: float) -> Callable[[], object]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    calls = iter([takes(seconds) for seconds in (9.0, 5.0, 1.0, 3.0, 2.0, 4.0, 8.0)])
    reply = worker.take_turn(calls, inner=2, samples=2, warm=10.0)
    assert (reply["median"], reply["minimum"]) == (2.5, 2.0)


def test_busy_cores_are_measured() -> None:
    def work() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    busy = worker.take_turn(iter([work] * 3), inner=1, samples=3, warm=0.0)["cores"]
    idle = worker.take_turn(iter([lambda: time.sleep(0.05)] * 3), 1, 3, 0.0)["cores"]
    assert idle < busy and idle < 0.5


def test_arrays_with_pickled_objects_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "weight.npy", np.ones((1, 1)))
    np.save(tmp_path / "bias.npy", np.array([print], dtype=object))
    request = {"do": "prepare", "arrays": str(tmp_path), "op": "linear"}
    assert "allow_pickle=False" in worker.Server(OneLayer()).answer(request)["error"]


def test_shape_of_a_convolution_result_is_that_of_torch() -> None:
    for case in (ConvCase(4, 8, 5, 3), ConvCase(4, 8, 9, 3, stride=2), ConvCase(4, 8, 6, 1)):
        data = LayerData(case, Pattern(0.5))
        weight, x = data.weight.numpy(), data.x.numpy()
        layer = Layer("conv", weight, weight[:, 0, 0, 0], x, case.stride, case.padding, 0)
        assert layer.out_shape == data.dense(data.x, data.weight, data.bias).shape


# ---- turns


class Scripted:
    """Answers with the figures of a list, a round after the other."""

    quiet = True

    def __init__(self, name: str, log: list[str], medians: list[float], cores: float = 1.0) -> None:
        self.name, self.log, self.medians, self.cores = name, log, iter(medians), cores

    def ask(self, **request: Any) -> dict[str, Any]:
        self.log.append(self.name)
        median = next(self.medians, None)
        if median is None:
            raise PeerError("out of figures")
        return {"median": median, "minimum": median / 2, "cores": self.cores, "quiet": self.quiet}


def test_peers_take_turns_and_a_slow_one_takes_fewer() -> None:
    log: list[str] = []
    peers = {name: Scripted(name, log, [1.0] * 4) for name in "ABC"}
    turns = {"A": Turns(1, 1, 0.0, 4), "B": Turns(1, 1, 0.0, 2), "C": Turns(1, 1, 0.0, 4)}
    found, dropped = take_turns(peers, turns, threads=1)
    assert "".join(log) == "ABCBCAACCA"
    assert not dropped
    assert [len(found[name].medians) for name in "ABC"] == [4, 2, 4]


def test_the_figures_of_every_turn_are_kept_in_order() -> None:
    peers = {
        "A": Scripted("A", [], [1.0, 10.0, 100.0]),
        "B": Scripted("B", [], [3.0, 30.0]),
    }
    found, _ = take_turns(peers, {"A": Turns(1, 1, 0, 3), "B": Turns(1, 1, 0, 2)}, threads=1)
    assert (found["A"].medians, found["B"].medians) == ([1.0, 10.0, 100.0], [3.0, 30.0])
    assert found["A"].minimum == 0.5


def test_a_peer_that_fails_in_its_turn_falls_out() -> None:
    log: list[str] = []
    peers = {"A": Scripted("A", log, [1.0] * 3), "B": Scripted("B", log, [1.0])}
    found, dropped = take_turns(peers, dict.fromkeys("AB", Turns(1, 1, 0, 3)), threads=1)
    assert "".join(log) == "ABBAA"
    assert list(found) == ["A"]
    assert dropped == {"B": "out of figures"}


def test_a_peer_that_keeps_more_cores_busy_than_asked_falls_out() -> None:
    peers = {"A": Scripted("A", [], [1.0], cores=1.9), "B": Scripted("B", [], [1.0], cores=1.1)}
    turns = dict.fromkeys("AB", Turns(1, 1, 0, 1))
    found, dropped = take_turns(peers, turns, threads=1)
    assert list(found) == ["B"]
    assert dropped == {"A": "expected at most 1 busy cores, got 1.9"}
    peers["A"] = Scripted("A", [], [1.0], cores=1.9)
    peers["B"] = Scripted("B", [], [1.0])
    assert list(take_turns(peers, turns, threads=2)[0]) == ["A", "B"]


def test_a_peer_that_does_not_go_to_sleep_is_marked() -> None:
    restless = Scripted("B", [], [1.0, 1.0])
    restless.quiet = False
    turns = dict.fromkeys("AB", Turns(1, 1, 0, 2))
    found, _ = take_turns({"A": Scripted("A", [], [1.0, 1.0]), "B": restless}, turns, threads=1)
    assert found["A"].quiet and not found["B"].quiet


@pytest.mark.parametrize(("spins", "quiet"), [(0.0, True), (0.02, True), (9.0, False)])
def test_a_turn_ends_when_the_workers_threads_sleep(
    spins: float, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread spins for some seconds; what sleeps moves the clock."""
    now = [0.0]
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(worker.time, "process_time", lambda: min(now[0], spins))
    monkeypatch.setattr(worker.time, "sleep", lambda step: now.__setitem__(0, now[0] + step))
    assert worker.wait_until_quiet() is quiet
    end = spins + worker.QUIET_STEP if quiet else worker.QUIET_LIMIT
    assert now[0] == pytest.approx(end, abs=worker.QUIET_STEP / 2)


def test_plan_repeats_short_calls_and_spares_long_ones() -> None:
    plan = TurnPlan(
        rounds=7, floor=3, sample=1e-3, samples=5, warm=2e-3, turn=2e-2, budget=0.4
    )  # fmt: skip
    assert plan.turns_of(1e-5) == Turns(inner=100, samples=5, warm=2e-3, rounds=7)
    assert plan.turns_of(1e-2) == Turns(inner=1, samples=2, warm=2e-3, rounds=7)
    assert plan.turns_of(0.1) == Turns(inner=1, samples=1, warm=0.0, rounds=4)
    assert plan.turns_of(2.0) == Turns(inner=1, samples=1, warm=0.0, rounds=3)


# ---- the bound


def test_bound_of_a_narrow_type_is_wider_but_no_licence() -> None:
    data = LayerData(LinearCase(16, 32, 4), Pattern(0.5))
    exact = data.dense(data.x, data.weight, data.bias)
    rounded = data.dense(data.x.bfloat16().float(), data.weight.bfloat16().float(), data.bias)
    data.verify("rounded", rounded, 2.0**-9)
    with pytest.raises(WrongResultError):
        data.verify("rounded", rounded)
    with pytest.raises(WrongResultError):
        data.verify("shifted", exact + 0.1, 2.0**-9)

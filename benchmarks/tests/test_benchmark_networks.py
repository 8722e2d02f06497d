"""The benchmark of whole networks: what is measured, what is refused, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import nn

from benchmarks.networks import __main__ as program
from benchmarks.networks.catalogue import ENTRANTS, OURS
from benchmarks.networks.definitions import NETWORKS, build, depthwise, inputs_of
from benchmarks.networks.measure import command_of, compared, measure
from benchmarks.networks.results import NetworkNotRun, NetworkResults, NetworkRow
from benchmarks.networks.table import as_markdown, draw
from benchmarks.peers.process import PeerError
from benchmarks.peers.turns import TurnPlan
from sparseinfer.timing.rounds import Quartiles

FAST = TurnPlan(rounds=2, floor=2, samples=1, turn=1e-3, budget=1e-3)


def test_what_is_pruned_and_what_stays() -> None:
    network = NETWORKS["mobilenet-v2"]
    model = build(network, 0.9)
    dense = {*network.kept, *depthwise(model)}
    zeros = total = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if name in dense:
            assert (module.weight != 0).all()
        else:
            zeros += int((module.weight == 0).sum())
            total += module.weight.numel()
    assert zeros / total == pytest.approx(0.9, abs=1e-4)
    assert len(depthwise(model)) == 17
    with torch.no_grad():
        y = model(inputs_of(network, 1))
    assert y.shape == (1, 1000) and y.std() > 1e-3
    assert torch.equal(build(network, 0.9).state_dict()["0.0.weight"], model[0][0].weight)


@pytest.mark.parametrize("name", ["mlp", "mobilenet-v1", "resnet50"])
def test_networks_are_those_of_the_papers(name: str) -> None:
    parameters = sum(p.numel() for p in NETWORKS[name].make().parameters())
    # torchvision's ResNet-50, and the MobileNet of the paper; 784 x 1024 and so on, with biases.
    expected = {"mlp": 2_913_290, "mobilenet-v1": 4_231_976, "resnet50": 25_557_032}
    assert parameters == expected[name]


def test_bert_reads_tokens() -> None:
    pytest.importorskip("transformers")
    network = NETWORKS["bert-base"]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in network.make().parameters())
    assert parameters == 108_891_648  # of the paper's 110 million, less the pooler
    ids = inputs_of(network, 2)
    assert ids.shape == (2, 128) and ids.dtype == torch.int64 and int(ids.max()) < network.tokens


def test_how_far_an_output_is() -> None:
    exact = np.array([[1.0, 2.0, -4.0], [3.0, 1.0, 0.0]])
    found = compared((exact + 0.04).astype(np.float32), exact)
    assert found["error"] == pytest.approx(0.01, rel=1e-5) and found["top1"] == 1.0
    assert 30 < found["sqnr_db"] < 40
    assert compared(np.roll(exact, 1, 1), exact)["top1"] == 0.0
    assert compared(exact, exact)["sqnr_db"] == 999.0
    for wrong in (exact[:1], exact * np.nan):
        with pytest.raises(PeerError, match="expected finite outputs"):
            compared(wrong, exact)


class Engine:
    """Answers as a worker does; its output is off by `off`."""

    def __init__(self, exact: Any, off: float = 0.0, seconds: float = 1e-3, threads: int = 1):
        self.exact, self.off, self.seconds, self.threads = exact, off, seconds, threads

    def ask(self, **request: Any) -> dict[str, Any]:
        if request["do"] == "prepare":
            np.save(request["result"], (self.exact + self.off).astype(np.float32))
            return {"threads": self.threads, "seconds": self.seconds}
        return {"median": self.seconds, "minimum": self.seconds, "cores": 1.0, "quiet": True}


def test_measured_in_turns_and_held_against_float64(tmp_path: Path) -> None:
    exact = np.array([[1.0, 2.0, -4.0]])
    np.save(tmp_path / "exact.npy", exact)
    engines = {
        "sparseinfer": Engine(exact, 1e-6),
        "torch": Engine(exact, 0.0, 3e-3),
        "onnxruntime": Engine(exact, 0.0, 2e-3),
        "onnxruntime-int8": Engine(exact, 0.1, 5e-4),
        "openvino": Engine(exact, 0.5),
        "openvino-bf16": Engine(exact, 0.0, threads=2),
    }

    def worker_of(peer: Any) -> Engine:
        if peer.name not in engines:
            raise PeerError("not installed")
        return engines[peer.name]

    rows, not_run = measure(
        NETWORKS["mlp"], 0.9, 1, 1, [*ENTRANTS.values()], worker_of, FAST, tmp_path
    )
    found = {row.engine: row for row in rows}
    assert set(found) == {"sparseinfer", "torch", "onnxruntime", "onnxruntime-int8"}
    assert found["onnxruntime"].is_best and not found["torch"].is_best
    assert found["onnxruntime"].ours_faster is not None
    assert found["onnxruntime"].ours_faster.median == pytest.approx(2.0)
    assert found["onnxruntime-int8"].ours_faster is None and found["onnxruntime-int8"].is_best
    reasons = {item.engine: item.reason for item in not_run}
    assert "expected float32 outputs with at least 80 dB" in reasons["openvino"]
    assert reasons["openvino-bf16"] == "expected 1 threads, got 2"
    assert reasons["sparseinfer-int8"] == "not installed"


def row(engine: str, sparsity: float, minimum: float, **more: Any) -> NetworkRow:
    entrant = ENTRANTS[engine]
    quartiles = Quartiles(minimum, minimum, minimum)
    given: dict[str, Any] = {
        "network": "mlp", "batch": 1, "sparsity": sparsity, "threads": 2, "engine": engine,
        "role": entrant.peer.role, "dtype": entrant.dtype, "seconds": quartiles,
        "minimum": minimum, "rounds": 3, "cores": 1.0, "quiet": True, "error": 1e-6,
        "sqnr_db": 120.0, "top1": 1.0, "ours_faster": None, "is_best": False,
    }  # fmt: skip
    return NetworkRow(**given | more)


@pytest.fixture
def results() -> NetworkResults:
    found = NetworkResults.begin(["--quick"], {"quick": True})
    faster = Quartiles(1.9, 2.0, 2.1)
    found.rows = [
        row("sparseinfer", 0.8, 1e-4),
        row("onnxruntime", 0.8, 2e-4, is_best=True, ours_faster=faster),
        row("sparseinfer", 0.9, 5e-5),
    ]
    found.not_run = [NetworkNotRun("mlp", 1, 0.9, 2, "openvino", "not installed")]
    return found


def test_the_table_and_the_file(results: NetworkResults, tmp_path: Path) -> None:
    text = as_markdown(results)
    assert "| sparseinfer | float32 | 0.1 | 0.05 | 1.0e-06 | 120 dB |" in text
    assert "| onnxruntime | float32 | **0.2 (2.00x)** | - | 1.0e-06 | 120 dB |" in text
    assert "- openvino: not installed" in text and "not for quoting" in text
    results.write(tmp_path / "results.json")
    again = NetworkResults.read(tmp_path / "results.json")
    assert again.rows == results.rows and again.not_run == results.not_run
    draw(again, tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes()[1:4] == b"PNG"


def test_engines_by_name_and_type() -> None:
    names = [entrant.name for entrant in program.chosen("all", "all", False)]
    assert "torch.compile" not in names and set(OURS.values()) < set(names)
    assert "deepsparse" not in names and "mnn" in names
    assert "deepsparse" in [own.name for own in program.chosen("all", "all", deepsparse=True)]
    with pytest.raises(typer.BadParameter, match="expected --deepsparse beside the engine"):
        program.chosen("mnn,deepsparse", "all")
    assert "torch.compile" in [own.name for own in program.chosen("all", "float32", True)]
    assert [own.name for own in program.chosen("torch.compile", "all", False)] == ["torch.compile"]
    int8 = [own.name for own in program.chosen("all", "int8", False)]
    assert int8 == ["sparseinfer-int8", "onnxruntime-int8", "openvino-int8"]
    with pytest.raises(typer.BadParameter, match="expected all or some of"):
        program.chosen("tvm", "all", False)


def test_an_engine_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PeerError, match="not installed"):
        command_of(ENTRANTS["openvino"], 1, tmp_path)
    assert "benchmarks.networks.worker" in command_of(ENTRANTS["torch"], 1, tmp_path)


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(program, "QUICK_PLAN", FAST)
    out = tmp_path / "results.json"
    program.main(out, "mlp", engines="sparseinfer,torch,onnxruntime-int8", threads="1", quick=True)
    found = NetworkResults.read(out)
    assert found.complete
    ran = {own.engine for own in found.rows} | {own.engine for own in found.not_run}
    assert ran == {"sparseinfer", "torch", "onnxruntime-int8"}
    assert {"sparseinfer", "torch"} <= {own.engine for own in found.rows}
    assert all(own.sparsity == 0.9 and own.threads == 1 for own in found.rows)
    assert "mlp, batch 1, 1 thread:" in capsys.readouterr().out

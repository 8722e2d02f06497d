"""The peers in int8 and bfloat16: exact results, errors, refusals, axes and reports; no package."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from peer_doubles import PLAN, made_up_results, made_up_row

from benchmarks.cases import ConvCase, LinearCase, Pattern
from benchmarks.layer_data import WrongResultError
from benchmarks.peers import __main__ as command
from benchmarks.peers import axes, narrow
from benchmarks.peers.catalogue import Peer, Target
from benchmarks.peers.crew import Crew
from benchmarks.peers.engines.bfloat16 import from_bits, to_bits
from benchmarks.peers.engines.interface import DYNAMIC, SEVEN_BITS, seven_bits
from benchmarks.peers.measure import measure
from benchmarks.peers.plot import curve_of, draw
from benchmarks.peers.process import own_python, worker_command
from benchmarks.peers.quantized import QuantizedData
from benchmarks.peers.results import PeerResults, PeerRow
from benchmarks.peers.table import as_markdown

LINEAR = LinearCase(24, 64, 5)
CONV = ConvCase(8, 16, 6, 3, stride=2)
CASES = [LINEAR, CONV, LinearCase(8, 16, 1), ConvCase(4, 8, 5, 1)]
PATTERNS = [Pattern(0.0), Pattern(0.8), Pattern(0.5, block=(4, 1)), Pattern(0.75, block=(1, 4))]


def fake(name: str, role: str = "dense") -> Peer:
    """Return the peer whose engine is the class ``name`` of fake_int8.py."""
    return Peer(name, "benchmarks.tests.fake_int8", name, None, role)


def fake_command(peer: Peer, threads: int, cache: Path) -> list[str]:
    return worker_command(own_python(), peer.module, peer.engine, threads)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with Crew(1, tmp_path, fake_command, timeout=60.0) as crew:
        yield crew


def run(
    crew: Crew, folder: Path, target: Target, *peers: Peer
) -> tuple[dict[str, PeerRow], dict[str, str]]:
    rows, not_run = measure(target, 0.5, 1, peers, crew.worker_of, PLAN, folder)
    return {row.peer: row for row in rows}, {item.peer: item.reason for item in not_run}


# ---- the data


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda one: f"{one.name} {one.sparsity}")
def test_zeros_stay_and_nothing_else_becomes_zero(
    case: LinearCase | ConvCase, pattern: Pattern
) -> None:
    data = QuantizedData(case, pattern)
    assert data.weight.dtype == torch.int8
    assert data.nnz == data.weight.numel() - round(pattern.sparsity * data.weight.numel())
    rows = data.weight.flatten(1).int().abs().amax(1)
    assert set(rows.tolist()) <= {0, 127}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_integers_stand_for_the_layer(case: LinearCase | ConvCase) -> None:
    """The exact result is that of a float64 layer of the numbers that the integers stand for."""
    data = QuantizedData(case, Pattern(0.5), "float32")
    scales = data.quantization
    rows = (-1, *(1 for _ in data.weight.shape[1:]))
    real = torch.from_numpy(scales.weight_scales).double()
    weight = data.weight.double() * real.view(rows)
    bias = data.bias.double() * real * scales.x_scale
    x = data.x.double()
    if isinstance(case, ConvCase):
        expected = torch.nn.functional.conv2d(x, weight, bias, case.stride, case.padding)
    else:
        expected = torch.nn.functional.linear(x, weight, bias)
    got = data.exact("int8") * scales.y_scale
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    steps = data.exact("int8") + scales.y_zero
    # The scale of y spans what there is.
    assert steps.min() >= -0.5 and steps.max() <= 255.5 and steps.max() - steps.min() > 250


@pytest.mark.parametrize("io", narrow.IOS["int8"])
def test_a_result_may_be_a_step_off_seldom(io: str) -> None:
    data = QuantizedData(LinearCase(32, 64, 32), Pattern(0.8), io)
    scales = data.quantization
    exact = data.exact("int8")
    if io == "uint8":
        right = exact.round().clamp(0, 255).to(torch.uint8).numpy()
        step: float | int = np.uint8(1)
    else:
        right = (exact * scales.y_scale).float().numpy()
        step = 0.4 * scales.y_scale
    assert data.verify("right", right, "int8") <= 1e-4
    near = right.copy()
    near.flat[np.flatnonzero(right < 200)[:3]] += step
    assert data.verify("near", near, "int8") == pytest.approx(1 if io == "uint8" else 0.4, 1e-3)
    far = near.copy()
    far.flat[np.flatnonzero(right < 200)[0]] += step
    for name, wrong in (("far", far), ("short", right[:-1]), ("wide", right.astype(np.float64))):
        with pytest.raises(WrongResultError, match="expected"):
            data.verify(name, wrong, "int8")
    if io == "float32":
        missing = right.copy()
        missing[0, 0] = np.nan
        with pytest.raises(WrongResultError):
            data.verify("nan", missing, "int8")


@pytest.mark.parametrize("value", [-127, -126, -1, 0, 1, 2, 63, 64, 127])
def test_seven_bits_keep_signs_and_zeros(value: int) -> None:
    (halved,) = seven_bits(np.array([value], np.int8)).tolist()
    assert abs(2 * halved - value) <= 1 and abs(halved) <= 64
    assert np.sign(halved) == np.sign(value)


def test_bfloat16_bits_are_pytorchs() -> None:
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1.00390625, 3.01171875])])
    bits = to_bits(values.numpy())
    expected = values.bfloat16()
    assert np.array_equal(bits.view(np.int16), expected.view(torch.int16).numpy())
    assert torch.equal(torch.from_numpy(from_bits(bits)), expected.float())


# ---- worker processes


@pytest.mark.parametrize("io", narrow.IOS["int8"])
def test_an_exact_engine_has_no_error_and_the_best_is_dense_int8(
    io: str, crew: Crew, tmp_path: Path
) -> None:
    target = Target(LINEAR, dtype="int8", io=io, structure="4x1")
    ours = dataclasses.replace(fake("Exact", "ours"), name="ours")
    rows, reasons = run(crew, tmp_path, target, ours, fake("Exact"), fake("SevenBits", "sparse"))
    assert not reasons
    assert {name: row.is_best for name, row in rows.items()} == {
        "ours": False, "Exact": True, "SevenBits": False,
    }  # fmt: skip
    row = rows["Exact"]
    assert (row.dtype, row.io, row.structure) == ("int8", io, "4x1")
    assert all(row.error is not None and row.error < 1e-3 for row in rows.values())
    assert rows["SevenBits"].precision == SEVEN_BITS


@pytest.mark.parametrize(
    ("name", "io", "reason"),
    [
        ("Truncates", "uint8", "of its elements are off"),
        ("Saturates", "uint8", "expected y within 1 steps"),
        ("Saturates", "float32", "expected y within 0.501 steps"),
        ("OneRowOff", "uint8", "of its elements are off"),
        ("OneRowOff", "float32", "of its elements are off"),
        ("Undeclared", "float32", "expected y within 0.501 steps"),
        ("Wide", "uint8", "expected uint8 of shape (16, 24), got float32"),
        ("Float", "float32", "computes in float32"),
    ],
)
def test_a_wrong_engine_is_named_with_the_reason(
    name: str, io: str, reason: str, crew: Crew, tmp_path: Path
) -> None:
    target = Target(LinearCase(24, 512, 16), dtype="int8", io=io)
    rows, reasons = run(crew, tmp_path, target, fake(name), fake("Exact"))
    assert list(rows) == ["Exact"]
    assert list(reasons) == [name] and reason in reasons[name]


def test_an_engine_that_scales_x_itself_may_be_a_step_of_x_away(crew: Crew, tmp_path: Path) -> None:
    target = Target(LINEAR, dtype="int8", io="float32")
    rows, reasons = run(crew, tmp_path, target, fake("Dynamic"))
    assert not reasons
    assert rows["Dynamic"].precision == DYNAMIC
    assert rows["Dynamic"].error is not None and rows["Dynamic"].error > 0.501


def test_a_peer_takes_only_what_it_is_for(crew: Crew, tmp_path: Path) -> None:
    linear = dataclasses.replace(fake("Exact"), ops=("linear",), structures=("1x4",))
    blocks = Target(LINEAR, dtype="int8", io="uint8", structure="1x4")
    assert list(run(crew, tmp_path, blocks, linear)[0]) == ["Exact"]
    for change in ({"structure": "unstructured"}, {"case": CONV}):
        other = dataclasses.replace(blocks, **change)
        assert run(crew, tmp_path, other, linear) == ({}, {})
    real = dataclasses.replace(fake("Exact"), ios=("float32",))
    assert run(crew, tmp_path, blocks, real) == ({}, {})


# ---- the peers of PyTorch's own environment

NEED_NO_PACKAGE = [
    (dtype, peer)
    for dtype, peers in narrow.NARROW.items()
    for peer in peers
    if peer.environment is None
]


@pytest.mark.parametrize(
    ("dtype", "peer"), NEED_NO_PACKAGE, ids=[f"{one}-{peer.name}" for one, peer in NEED_NO_PACKAGE]
)
def test_peers_that_need_no_package_are_right(dtype: str, peer: Peer, tmp_path: Path) -> None:
    """Real engines on two layers of one shape, whose zeros differ."""
    # oneDNN's linear operator refuses smaller ones.
    cases = [case for case in (LinearCase(64, 64, 5), CONV) if case.op in peer.ops]
    structures = ("unstructured", "1x4")
    with Crew(1, tmp_path) as crew:
        for case, io, structure in itertools.product(cases, narrow.IOS[dtype], structures):
            target = Target(case, dtype=dtype, io=io, structure=structure)
            rows, not_run = measure(target, 0.5, 1, [peer], crew.worker_of, PLAN, tmp_path)
            assert not not_run
            assert len(rows) == peer.takes(target)
            assert all((row.error is not None) == (dtype == "int8") for row in rows)


# ---- axes and the command line


def test_axes_have_their_words_and_refuse_others() -> None:
    assert axes.parse_ios("all", "int8") == ["uint8", "float32"]
    assert axes.parse_ios("float32", "bfloat16") == ["float32"]
    assert axes.parse_structures("", "float32") == ["unstructured"]
    assert axes.parse_structures("", "int8") == ["unstructured", "4x1", "1x4"]
    assert axes.parse_structures("1x4,4x1", "float32") == ["4x1", "1x4"]
    with pytest.raises(typer.BadParameter, match="got 'int4'"):
        axes.parse_dtype("int4")
    with pytest.raises(typer.BadParameter, match="got 'uint8'"):
        axes.parse_ios("uint8", "float32")
    with pytest.raises(typer.BadParameter, match="got '2:4'"):
        axes.parse_structures("2:4", "int8")


def test_a_layer_without_zeros_is_measured_once() -> None:
    targets = axes.vary([Target(LINEAR)], "int8", ["uint8"], ["unstructured", "4x1"])
    assert [target.structure for target in targets] == ["unstructured", "4x1"]
    found = [(target.structure, sparsity) for target, sparsity in axes.cells(targets, [0.0, 0.9])]
    assert found == [("unstructured", 0.0), ("unstructured", 0.9), ("4x1", 0.9)]


def test_every_peer_and_layer_has_a_name_of_its_own() -> None:
    for peers in narrow.NARROW.values():
        assert len({peer.name for peer in peers}) == len(peers)
    names = [target.name for target in narrow.TARGETS]
    assert len(set(names)) == len(names)
    assert set(narrow.QUICK) <= set(narrow.TARGETS)
    chosen = command.parse_targets("768x768 N=16", quick=False, dtype="int8")
    assert [target.case for target in chosen] == [LinearCase(768, 768, 16)]
    with pytest.raises(typer.BadParameter, match=r"got 'scipy\.sparse'"):
        command.parse_peers("scipy.sparse", False, "int8")


def test_one_command_from_int8_peers_to_file_tables_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole run with made-up engines: every axis, the errors, who is wrong and why."""
    peers = (
        dataclasses.replace(fake("Exact", "ours"), name="ours"), fake("Exact"), fake("Saturates"),
        dataclasses.replace(fake("SevenBits", "sparse"), structures=("1x4",)),
    )  # fmt: skip
    monkeypatch.setitem(narrow.NARROW, "int8", peers)
    monkeypatch.setattr(narrow, "TARGETS", (Target(LinearCase(24, 512, 16)),))
    monkeypatch.setattr(command, "PLAN", PLAN)
    out = tmp_path / "out.json"
    command.main(
        "all", "all", "0,0.5", "1", out, False, False, False, tmp_path, "int8", "all", "all"
    )
    results = PeerResults.read(out)
    assert results.complete and results.settings["ios"] == ["uint8", "float32"]
    assert results.command.endswith("--dtype int8 --structure all --threads 1 --out out.json")
    found = [(row.io, row.structure, row.sparsity) for row in results.rows if row.peer == "ours"]
    measured = [("unstructured", 0.0), ("unstructured", 0.5), ("4x1", 0.5), ("1x4", 0.5)]
    assert found == [(io, *one) for io in ("uint8", "float32") for one in measured]
    assert {row.structure for row in results.rows if row.peer == "SevenBits"} == {"1x4"}
    assert {item.peer for item in results.not_run} == {"Saturates"}
    text = as_markdown(results)
    for part in ("Uint8 x and y, unstructured:", "Float32 x and y, 1x4 blocks:"):
        assert part in text
    assert "checked against the exact integer result" in text
    assert "| best dense int8 |" in text and "| worst error |" in text
    assert "- Saturates (linear 24x512 N=16," in text
    draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_is_of_one_structure() -> None:
    rows = [
        made_up_row("ours", 1.0, best, structure=structure, sparsity=0.5)
        for structure, best in (("unstructured", 0.5), ("4x1", 0.25))
    ]
    assert curve_of(rows, "ours") == [(0.5, 2.0)]
    assert curve_of(rows, "ours 4x1") == [(0.5, 4.0)]


def test_a_plot_may_have_more_lines_than_there_are_colours(tmp_path: Path) -> None:
    rows = [
        made_up_row(peer, 1.0, 0.5, structure=structure, sparsity=sparsity)
        for peer in ("ours", "csr", "other", "third")
        for structure in ("unstructured", "4x1", "1x4")
        for sparsity in (0.5, 0.9)
    ]
    draw(made_up_results(rows), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

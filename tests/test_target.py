"""A weight is packed for a target: its bytes do not follow from the machine that packs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sparseinfer import _C, convert_to_sparse, formats, report
from sparseinfer.layers.kinds import kind_named
from sparseinfer.timing import calibration, cost, machine, tuning

GOLDEN = Path(__file__).parent.parent / "csrc" / "formats" / "panel" / "golden"

CHOICES = {
    "conv_4x72x3x3_aarch64": formats.BY_SHAPE,
    "linear_5x300_many_tokens_aarch64": formats.MANY_TOKENS,
}
"""Buffers that an aarch64 build packed (under qemu, for its host), and the `kblock` it was told."""


def golden(name: str) -> torch.Tensor:
    return torch.frombuffer(bytearray((GOLDEN / f"{name}.bin").read_bytes()), dtype=torch.uint8)


@pytest.mark.parametrize("name", CHOICES)
def test_packs_the_bytes_that_an_arm_host_packs(name):
    expected = golden(name)
    weight = formats.unpack(expected)
    packed = formats.pack(weight, kblock=CHOICES[name], target="aarch64-neon")
    assert packed.numpy().tobytes() == expected.numpy().tobytes()
    again = formats.pack(weight, kblock=CHOICES[name], target="aarch64-dotprod")
    assert torch.equal(again, packed)


@pytest.mark.parametrize(
    ("target", "conv", "linear"),
    [
        ("x86-64-avx2", 576, 0),
        ("x86-64-avx512", 144, 128),
        ("x86-64-avx512-vnni", 144, 128),
        ("aarch64-neon", 576, 0),
        ("aarch64-dotprod", 576, 0),
        ("armv7", 576, 0),
        ("riscv64", 576, 0),
    ],
)
def test_k_blocks_follow_the_target(target, conv, linear):
    def chosen(weight, kblock=formats.BY_SHAPE):
        packed = formats.pack(weight, kblock=kblock, target=target)
        assert torch.equal(formats.unpack(packed), weight)
        return formats.info(packed)["params"]["kblock"]

    assert chosen(torch.ones(4, 128, 3, 3)) == conv
    assert chosen(torch.ones(4, 512), formats.MANY_TOKENS) == linear
    assert chosen(torch.ones(4, 512)) == 0


def test_the_host_is_the_default():
    weight = torch.ones(4, 128, 3, 3)
    assert torch.equal(formats.pack(weight), formats.pack(weight, target="host"))
    wide = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"}
    like = "x86-64-avx512" if wide <= set(_C.cpu_features()) else "aarch64-neon"
    assert torch.equal(formats.pack(weight), formats.pack(weight, target=like))


@pytest.mark.parametrize("format", ["csr", "nm", "bsr"])
def test_other_formats_take_a_target(format):
    weight = torch.eye(16)
    assert torch.equal(formats.pack(weight, format, target="armv7"), formats.pack(weight, format))


@pytest.mark.parametrize("format", formats.FORMATS)
def test_an_unknown_target_is_refused(format):
    with pytest.raises(ValueError, match=r"expected a target of host, x86-64-avx2.*got 'toaster'"):
        formats.pack(torch.eye(16), format, target="toaster")


def test_a_device_refuses_an_unknown_target():
    with pytest.raises(ValueError, match=r"expected a target of host.*got 'toaster'"):
        formats.pack(torch.eye(16, device="meta"), "csr", target="toaster")


@pytest.mark.slow
def test_a_limit_of_the_process_changes_no_file():
    program = (
        "import hashlib, torch; from sparseinfer import formats;"
        "packed = formats.pack(torch.ones(4, 128, 3, 3));"
        "print(hashlib.sha256(packed.numpy().tobytes()).hexdigest())"
    )
    assert output(program, "") == output(program, "scalar")


def output(program: str, isa: str) -> str:
    """What a program prints in a process that is limited to an instruction set."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SPARSEINFER_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_targets_say_what_they_are():
    targets = {target["name"]: target for target in _C.targets()}
    assert list(targets) == list(formats.TARGETS)
    assert targets["host"]["features"] == _C.cpu_features()
    assert targets["aarch64-dotprod"]["features"] == ["neon", "fp16", "dotprod"]
    assert "avx512_vnni" in targets["x86-64-avx512-vnni"]["features"]
    assert targets["riscv64"]["features"] == []
    for target in targets.values():
        assert target["l1"] >= 16 << 10
        assert target["l2"] >= 128 << 10
        assert target["threads"] >= 1


def test_features_decide_what_runs():
    here = set(_C.cpu_features())
    for isa in _C.isas():
        if isa["compiled"] and "SPARSEINFER_ISA" not in isa["reason"]:
            assert isa["supported"] == (set(isa["features"]) <= here)


def test_rows_name_their_types():
    rows = {row["name"]: row for row in _C.rows()}
    assert rows["panel.linear.scalar"]["weight_types"] == ["float32", "bfloat16"]
    assert rows["bsr.conv.scalar"]["weight_types"] == ["float32", "float16", "bfloat16"]
    types = {
        "float32": ["float32"],
        "int8": ["float32", "uint8"],
        "bfloat16": ["float32", "bfloat16"],
    }
    for row in rows.values():
        assert row["x_types"] == row["y_types"] == types[row["dtype"]]


def test_formats_say_what_they_store():
    table = {format["name"]: format for format in _C.formats()}
    assert table["panel"]["value_types"] == ["float32", "bfloat16", "int8"]
    assert table["bsr"]["params"] == ["block", "blocks"]
    for name, format in table.items():
        info = formats.info(formats.pack(torch.eye(16), name))
        assert list(info["params"]) == format["params"]
        assert list(info["sections"]) == format["sections"]


# ---- conversion


def model_of(weight: torch.Tensor) -> nn.Module:
    """A convolution with this weight, a linear layer and a recurrent one."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3)
    conv.weight.data = weight.clone()
    model = nn.Sequential(conv, nn.ReLU(), nn.Linear(64, 32), nn.LSTM(32, 16))
    return prune_all(model)


def prune_all(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "weight" in name:
                parameter.mul_(torch.rand_like(parameter) < 0.05)
    return model


def test_a_conversion_packs_the_bytes_that_an_arm_host_packs():
    name = "conv_4x72x3x3_aarch64"
    expected = golden(name)
    model = model_of(formats.unpack(expected))
    sparse = convert_to_sparse(model, min_speedup=0, target="aarch64-neon")
    assert torch.equal(sparse[0].packed, expected)
    found = report(sparse)
    assert [layer.format for layer in found.layers] == ["panel"] * 3
    assert found.layers[0].params == {"target": "aarch64-neon"}
    assert all("no cost model for aarch64-neon" in layer.reason for layer in found.layers)
    assert found.title == "converted for aarch64-neon, 4 threads, min_speedup=0"
    # What is packed anew stays as it was for the target.
    sparse[0].weight = formats.unpack(expected)
    assert torch.equal(sparse[0].packed, expected)


@pytest.mark.parametrize("target", ["x86-64-avx2", "aarch64-dotprod", "riscv64"])
def test_where_nothing_is_known_of_a_target_layers_stay_dense(target):
    model = nn.Sequential(nn.Linear(512, 512))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(512, 512) < 0.02)
    sparse = convert_to_sparse(model, target=target)
    assert type(sparse[0]) is nn.Linear
    (layer,) = report(sparse).layers
    assert layer.reason.startswith(f"there is no cost model for {target}: convert on such a")
    assert f"Nothing of another machine, {target}, can be timed here" in str(report(sparse))
    assert not cost.has_rates(target)
    with pytest.raises(ValueError, match=f"there is a cost model for, got '{target}'"):
        cost.estimate(512, 512, 1, 0.02, target=target)


@pytest.mark.parametrize("target", ["x86-64-avx512", "x86-64-avx512-vnni"])
def test_the_rates_of_a_target_decide(target, monkeypatch):
    monkeypatch.setattr(calibration, "load", lambda path: pytest.fail("read this machine's rates"))
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(64, 64, 3, 3) < 0.02)
    before = torch.get_num_threads()
    sparse = convert_to_sparse(model, target=target)
    layer, dense = report(sparse).layers
    guess = kind_named("conv2d").worst_estimate(64, 576, layer.nnz / 36864, 16, target=target)
    assert (layer.timing, layer.sparse_ms) == ("modelled", guess.sparse_ms)
    assert (layer.format, dense.format) == ("panel", "dense")
    assert (report(sparse).threads, torch.get_num_threads()) == (16, before)
    assert report(convert_to_sparse(model, target=target, threads=1)).threads == 1


def test_every_target_has_an_instruction_set_of_ours():
    compiled = {isa["name"] for isa in _C.isas()}
    assert {name: machine.target_isa(name) for name in formats.TARGETS if name != "host"} == {
        "x86-64-avx2": "avx2", "x86-64-avx512": "avx512", "x86-64-avx512-vnni": "avx512",
        "aarch64-neon": "neon", "aarch64-dotprod": "neon", "armv7": "scalar", "riscv64": "scalar",
    }  # fmt: skip
    assert machine.target_isa("host") in compiled


def test_what_cannot_be_measured_here_is_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    for examples in (torch.zeros(1, 8), [torch.zeros(1, 8)], {"input": torch.zeros(1, 8)}):
        with pytest.raises(
            ValueError, match=r"expected no example_inputs for target='armv7'.*try them on that"
        ):
            convert_to_sparse(model, target="armv7", example_inputs=examples)
    for call in (lambda: convert_to_sparse(model, target="toaster"), lambda: cost.has_rates("?")):
        with pytest.raises(ValueError, match=r"expected a target of host, x86-64-avx2.*try 'host'"):
            call()
    with pytest.raises(ValueError, match="expected threads >= 1"):
        convert_to_sparse(model, target="armv7", threads=0)


def test_kept_comparisons_are_those_of_a_target():
    facts = tuning.describe_machine()["target"]
    assert facts == {key: _C.targets()[0][key] for key in ("name", "features", "l1", "l2")}


@pytest.mark.slow
def test_a_limit_of_the_process_changes_no_conversion():
    program = (
        "import hashlib, torch; from sparseinfer import convert_to_sparse;"
        "torch.manual_seed(1); model = torch.nn.Sequential(torch.nn.Conv2d(128, 64, 3));"
        "model[0].weight.data *= torch.rand(64, 128, 3, 3) < 0.02;"
        "sparse = convert_to_sparse(model, target='x86-64-avx512');"
        "print(hashlib.sha256(sparse[0].packed.numpy().tobytes()).hexdigest())"
    )
    assert output(program, "") == output(program, "scalar")

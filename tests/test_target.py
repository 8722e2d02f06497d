"""A weight is packed for a target: its bytes do not follow from the machine that packs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparseinfer import _C, formats

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
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "SPARSEINFER_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for isa in ("", "scalar")
    ]
    assert runs[0] == runs[1]


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
    assert all(row["x_types"] == row["y_types"] == ["float32"] for row in rows.values())


def test_formats_say_what_they_store():
    table = {format["name"]: format for format in _C.formats()}
    assert table["panel"]["value_types"] == ["float32", "bfloat16"]
    assert table["bsr"]["params"] == ["block", "blocks"]
    for name, format in table.items():
        info = formats.info(formats.pack(torch.eye(16), name))
        assert list(info["params"]) == format["params"]
        assert list(info["sections"]) == format["sections"]

"""Pairs of bfloat16: packed, unpacked, and every row that multiplies them, against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseinfer import native
from sparseinfer.formats import info, pack, unpack
from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels import registry

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NAMES = [row.name for row in registry.rows() if row.weight_types == (registry.PAIRS,)]


def _weight(*shape: int, density: float = 0.3) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape) * (torch.rand(shape) < density)


def _row(name: str) -> int:
    row = next(row for row in registry.rows() if row.name == name)
    if reasons := row.machine_reasons():
        pytest.skip("; ".join(reasons))
    assert row.native_id is not None
    return row.native_id


def _check(y: Tensor, expected: Tensor, absolute: Tensor, k: int) -> None:
    bound = (k + 2) * 2.0**-23 * absolute
    if y.dtype is torch.bfloat16:
        bound = bound + 2.0**-8 * (expected.abs() + bound)
    assert ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(1, 1), (9, 70), (16, 3, 3, 3), (8, 5, 4)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_packs_and_unpacks_what_bfloat16_makes_of_a_weight(
    shape: tuple[int, ...], density: float
) -> None:
    weight = _weight(*shape, density=density)
    packed = pack(weight, weights="bfloat16", g=2)
    assert info(packed)["params"]["g"] == 2
    assert torch.equal(unpack(packed), weight.bfloat16().float())


def test_bfloat16_values_keep_their_layout() -> None:
    weight = _weight(12, 40)
    assert info(pack(weight, weights="bfloat16"))["params"]["g"] == 1


@pytest.mark.parametrize("bad", [{"g": 3}, {"g": 2, "kblock": 16}, {"g": 2, "weights": "float32"}])
def test_refuses_what_no_layout_has(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        pack(_weight(8, 32), **{"weights": "bfloat16", **bad})


@pytest.mark.parametrize("name", [name for name in NAMES if ".linear." in name])
@pytest.mark.parametrize("x_type", TYPES)
@pytest.mark.parametrize("y_type", TYPES)
@pytest.mark.parametrize("tokens", [1, 5, 33, 100])
def test_linear_rows(name: str, x_type: str, y_type: str, tokens: int) -> None:
    row = _row(name)
    weight, bias = _weight(37, 90), torch.randn(37)
    x = torch.randn(tokens, 90).to(TYPES[x_type])
    y = torch.empty(tokens, 37, dtype=TYPES[y_type])
    handle = open_packed(pack(weight, weights="bfloat16", g=2))
    handle.weights.linear_bf16(
        x.data_ptr(), y.data_ptr(), bias.data_ptr(), tokens, 90, 37, False, "none", row, 1,
        x_type, y_type,
    )  # fmt: skip
    w, b, operands = weight.bfloat16().double(), bias.double(), x.bfloat16().double()
    _check(y, operands @ w.t() + b, operands.abs() @ w.abs().t() + b.abs(), 90)


@pytest.mark.parametrize("name", [name for name in NAMES if ".conv." in name])
@pytest.mark.parametrize("x_type", TYPES)
@pytest.mark.parametrize("y_type", TYPES)
def test_convolution_rows(name: str, x_type: str, y_type: str) -> None:
    row = _row(name)
    weight, bias = _weight(13, 6, 3, 3), torch.randn(13)
    x = torch.randn(2, 6, 9, 11).to(TYPES[x_type])
    y = torch.empty(2, 13, 9, 11, dtype=TYPES[y_type])
    handle = open_packed(pack(weight, weights="bfloat16", g=2))
    handle.weights.conv_bf16(
        x.data_ptr(), y.data_ptr(), bias.data_ptr(), 2, 9, 11, (1, 1), (1, 1, 1, 1), (1, 1),
        "zeros", "none", row, 1, x_type, y_type,
    )  # fmt: skip
    w, b, operands = weight.bfloat16().double(), bias.double(), x.bfloat16().double()
    expected = torch.nn.functional.conv2d(operands, w, b, padding=1)
    absolute = torch.nn.functional.conv2d(operands.abs(), w.abs(), b.abs(), padding=1)
    _check(y, expected, absolute, 54)


BEST = """
import torch
from sparseinfer.formats import pack
from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels import registry

torch.manual_seed(0)
handle = open_packed(pack(torch.randn(37, 300), weights="bfloat16", g=2))
x = torch.randn(33, 300)

def call(row):
    y = torch.empty(33, 37)
    handle.weights.linear_bf16(
        x.data_ptr(), y.data_ptr(), 0, 33, 300, 37, False, "none", row, 1, "float32", "float32"
    )
    return y

best = call(-1)
for row in registry.rows():
    if row.name.startswith("panel.linear.bf16.") and not row.machine_reasons():
        if torch.equal(call(row.native_id), best):
            print(row.name.rpartition(".")[2])
"""
"""Prints the instruction sets whose results are, bit for bit, those of the row that is chosen."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("isa", ["avx512bf16", "avx512", "avx2", "neon", "scalar"])
def test_the_best_row_that_may_run_is_chosen(isa: str) -> None:
    _row(f"panel.linear.bf16.{isa}")
    environment = {**os.environ, "SPARSEINFER_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", BEST], env=environment, capture_output=True, text=True, check=True
    )
    assert isa in done.stdout.split()
    # Sums of two other orders differ somewhere.
    assert isa == "scalar" or "scalar" not in done.stdout.split()


def test_only_pairs_run_in_their_rows() -> None:
    pairs = {index for index, row in enumerate(native.rows()) if row["dtype"] == "bfloat16"}
    assert pairs
    problem = registry.Problem("linear", "panel", dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="got pairs of bfloat16"):
        registry.select(problem)
    single = open_packed(pack(_weight(8, 32), weights="bfloat16"))
    x, y = torch.randn(4, 32), torch.empty(4, 8)
    for row in pairs & {i for i, row in enumerate(native.rows()) if row["op"] == "linear"}:
        with pytest.raises(RuntimeError, match=r"cannot run|expected float32 values"):
            single.weights.linear(x.data_ptr(), y.data_ptr(), 0, 4, 32, 8, False, "none", row, 1)

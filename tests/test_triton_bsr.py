"""The Triton bsr kernels: interpreted on the CPU, and compiled ahead for sm_80 and sm_90."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton_bsr_checks as checks
from test_triton_nm import needs_assembler, needs_gpu, needs_triton, worker
from triton_nm_checks import ACTIVATIONS, DTYPES, ONE_QUICK

from sparseinfer import formats
from sparseinfer.kernels import registry
from sparseinfer.kernels.triton.bsr_grid import BsrMeta, bsr_limits

Check = Callable[..., None]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    with worker(TRITON_INTERPRET="1") as call:
        yield call


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    cache = tmp_path_factory.mktemp("triton-cache")
    with worker(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache)) as call:
        yield call


BLOCKS = (16, 32, 64, 128)
SHAPES = [
    (0, 5, 8),
    (1, 1, 1),
    (3, 33, 131),
    (16, 64, 64),
    (17, 130, 40),
    (33, 20, 70),
    (70, 40, 150),
]


@pytest.mark.sampled(2)
@needs_triton
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_linear_matches_float64(interpreted: Check, dtype: str, block: int) -> None:
    for at, shape in enumerate(SHAPES):
        density = (0.4, 1.0, 0.4, 0.0)[at % 4]
        interpreted(checks.check_linear, dtype, shape, block, density, "none", True, "cpu")
    interpreted(checks.check_linear_integers, dtype, block, "cpu")


@needs_triton
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_linear_activations_splits_values_and_layouts(interpreted: Check, dtype: str) -> None:
    for activation in ACTIVATIONS:
        biased = activation != "relu"
        interpreted(checks.check_linear, dtype, (3, 18, 21), 16, 0.7, activation, biased, "cpu")
    interpreted(checks.check_linear, dtype, (70, 18, 21), 16, 0.7, "gelu", False, "cpu")
    interpreted(checks.check_split_rows, dtype, "cpu")
    interpreted(checks.check_values, dtype, "cpu")
    interpreted(checks.check_layouts, dtype, "cpu")
    interpreted(checks.check_operators, dtype)


@pytest.mark.sampled(2)
@needs_triton
@pytest.mark.parametrize("name", checks.CONVOLUTIONS)
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_convolutions_match_float64(interpreted: Check, dtype: str, name: str) -> None:
    block = BLOCKS[list(checks.CONVOLUTIONS).index(name) % 4]
    interpreted(checks.check_conv, dtype, name, block, 0.6, "gelu", "cpu")


@needs_triton
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_convolutions_of_every_block(interpreted: Check, dtype: str) -> None:
    for block in BLOCKS:
        interpreted(checks.check_conv, dtype, "1x1", block, 0.6, "none", "cpu")
    for density in (0.0, 1.0):
        interpreted(checks.check_conv, dtype, "1x1", 32, density, "relu", "cpu")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", checks.CONVOLUTIONS)
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_every_convolution_of_every_block(interpreted: Check, dtype: str, name: str) -> None:
    for block in BLOCKS:
        for density in (0.0, 0.6, 1.0):
            interpreted(checks.check_conv, dtype, name, block, density, "relu", "cpu")


@needs_triton
@pytest.mark.parametrize("dtype", ONE_QUICK)
def test_convolutions_of_many_pixels_and_of_one_axis(interpreted: Check, dtype: str) -> None:
    interpreted(checks.check_conv_large, dtype, "cpu")
    interpreted(checks.check_conv1d_and_values, dtype, "cpu")


@needs_triton
def test_errors_and_examples(interpreted: Check) -> None:
    interpreted(checks.check_errors)
    interpreted(checks.check_examples)


COMPILED = [  # blocks of 64 are test_compiled_rows.py's
    *((80, dtype, block) for dtype, block in zip(DTYPES, (16, 32, 128), strict=True)),
    *(pytest.param(90, "bfloat16", block, marks=pytest.mark.slow) for block in (16, 32, 128)),
]


@needs_assembler
@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype", "block"), COMPILED)
def test_compiles_ahead(compiled: Check, capability: int, dtype: str, block: int) -> None:
    for tokens in (1, 64, 65):
        compiled(checks.compile_linear, capability, dtype, block, tokens, tokens == 1)
    for pixels in (49, 9999):
        compiled(checks.compile_conv, capability, dtype, block, pixels)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_gpu(compiled: Check, dtype: str) -> None:
    for block in BLOCKS:
        for shape in [*SHAPES, (1, 4096, 4096), (300, 512, 1024)]:
            compiled(checks.check_linear, dtype, shape, block, 0.2, "gelu", True, "cuda")
        compiled(checks.check_linear_integers, dtype, block, "cuda")
        for name in checks.CONVOLUTIONS:
            compiled(checks.check_conv, dtype, name, block, 0.6, "relu", "cuda")
    compiled(checks.check_split_rows, dtype, "cuda")
    compiled(checks.check_values, dtype, "cuda")
    compiled(checks.check_layouts, dtype, "cuda")
    compiled(checks.check_conv_large, dtype, "cuda")
    compiled(checks.check_conv1d_and_values, dtype, "cuda")


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("sparseinfer.kernels.triton._triton_reasons", lambda: [])
    assert bsr_limits(registry.Problem("linear", "bsr", dtype=torch.bfloat16)) == []
    doubles = registry.Problem("linear", "bsr", dtype=torch.float64)
    assert "got float64" in bsr_limits(doubles)[0]
    grouped = registry.Problem("conv", "bsr", torch.device("cpu"), torch.float16, groups=3)
    row = next(row for row in registry.rows() if row.name == "bsr.conv.triton")
    assert "got groups=3: a block would read one group" in row.unsupported_reasons(grouped)[0]


def test_a_2_4_convolution_on_a_gpu_says_why_it_stays_dense() -> None:
    problem = registry.Problem("conv", "nm", torch.device("cuda"), torch.float16)
    with pytest.raises(RuntimeError, match=r"stays dense, for expanding .* when compute-bound"):
        registry.select(problem)


def test_meta_refuses_another_format() -> None:
    with pytest.raises(ValueError, match="expected a packed buffer in the bsr format, got csr"):
        BsrMeta.from_info(formats.info(formats.pack(torch.eye(4), "csr")))

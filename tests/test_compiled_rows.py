"""Every Triton row compiled ahead for sm_80 and sm_90: it fits in shared memory and spills nothing.

What the interpreter hides, a compiler tells without a GPU. The quick tests take bfloat16 at each N
bucket for one capability; the slow ones the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import compiled_rows
import pytest
from test_triton_nm import needs_assembler, worker

from sparseinfer.kernels.registry import EDGES, TRITON_ROWS

ROWS = [row for row in TRITON_ROWS if row.isa == "triton"]
TOKENS = (*EDGES, EDGES[-1] + 1)


def _cases(every: bool) -> list[Any]:
    cases = []
    for row in ROWS:
        for dtype in row.dtype.split(", "):
            for tokens in TOKENS:
                if not row.least <= tokens <= (row.most or tokens):
                    continue
                for capability in (80, 90):
                    quick = dtype == "bfloat16" and capability == 90
                    if every != quick:
                        name = f"{row.name} sm_{capability} {dtype} N={tokens}"
                        cases.append(pytest.param(row.name, capability, dtype, tokens, id=name))
    return cases


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    cache = tmp_path_factory.mktemp("triton-cache")
    with worker(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache)) as call:
        yield call


@pytest.mark.sampled(4)
@needs_assembler
@pytest.mark.parametrize(("name", "capability", "dtype", "tokens"), _cases(every=False))
def test_a_row_compiles(
    compiled: Callable[..., Any], name: str, capability: int, dtype: str, tokens: int
) -> None:
    assert compiled(compiled_rows.compile_row, name, capability, dtype, tokens)


@pytest.mark.slow
@needs_assembler
@pytest.mark.parametrize(("name", "capability", "dtype", "tokens"), _cases(every=True))
def test_a_row_compiles_in_every_type(
    compiled: Callable[..., Any], name: str, capability: int, dtype: str, tokens: int
) -> None:
    assert compiled(compiled_rows.compile_row, name, capability, dtype, tokens)


@needs_assembler
def test_the_limits_are_checked(compiled: Callable[..., Any]) -> None:
    said = compiled(compiled_rows.too_much_shared_memory_is_found)
    assert said.startswith("nm_linear_kernel takes ") and said.endswith("1 are there")


@needs_assembler
def test_spills_are_checked(compiled: Callable[..., Any]) -> None:
    assert compiled(compiled_rows.a_spill_is_found).startswith("nm_linear_kernel spills 8 bytes")

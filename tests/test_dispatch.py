"""Which device row runs: decided once per weight, type and N bucket, and errors worded as torch's.

Rows are doubles here and tensors are on the CPU; the kernels have tests of their own.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparseinfer import SparseConv2d, SparseLinear, formats, pack, registry
from sparseinfer.conv import conv_cuda
from sparseinfer.handles import open_packed
from sparseinfer.linear import linear_cuda
from sparseinfer.registry import EDGES, TRITON_ROWS, Problem, Row, bucket_of

CUDA = torch.device("cuda")
WEIGHT = torch.tensor([[1.0, 0, 2, 0], [0, 3, 0, 4]])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """Two nm rows in place of all device rows, which note their calls and answer with zeros."""
    made: list[tuple[str, Any]] = []

    def kernel(name: str) -> Any:
        def run(x: Tensor, packed: Tensor, bias: Any, rows: int, *_: Any, meta: Any) -> Tensor:
            made.append((name, meta))
            return x.new_zeros(*x.shape[:-1], rows)

        return run

    asked: list[str] = []

    def refuses(problem: Problem) -> list[str]:
        asked.append(problem.op)
        return ["expected 2:4, got another"] * ((problem.n, problem.m) != (2, 4))

    module = types.ModuleType("row_doubles")
    module.few, module.any = kernel("few"), kernel("any")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "row_doubles", module)
    row = replace(TRITON_ROWS[0], refuses=refuses, meta=lambda info: dict(info))
    doubles = (
        replace(row, name="few", kernel="row_doubles:few", most=64),
        replace(row, name="any", kernel="row_doubles:any"),
    )
    monkeypatch.setattr(registry, "TRITON_ROWS", doubles)
    registry.rows.cache_clear()
    registry.select.cache_clear()
    made.append(("asked", asked))
    yield made
    monkeypatch.undo()
    registry.rows.cache_clear()
    registry.select.cache_clear()


def test_every_device_row_names_a_function_that_is_there() -> None:
    for row in TRITON_ROWS:
        module, function = row.kernel.split(":")
        found = importlib.util.find_spec(module)
        assert found is not None and found.origin is not None
        assert f"def {function}(" in open(found.origin, encoding="utf-8").read()
        assert row.format in formats.FORMATS and row.meta is not None and row.refuses is not None


def test_limits_of_rows_lie_on_the_edges_of_buckets() -> None:
    for row in TRITON_ROWS:
        assert row.least == 0 or row.least - 1 in EDGES, row.name
        assert row.most is None or row.most in EDGES, row.name


def test_buckets_end_at_their_edges() -> None:
    for bucket, edge in enumerate(EDGES):
        assert bucket_of(edge) == bucket and bucket_of(edge + 1) == bucket + 1


def test_a_row_says_which_n_it_takes() -> None:
    row = replace(TRITON_ROWS[0], least=256, refuses=lambda problem: [])
    problem = Problem("linear", "nm", CUDA, torch.float16, N=8)
    assert row.unsupported_reasons(problem) == ["expected N >= 256, got 8; try a larger batch"]
    assert not row.unsupported_reasons(replace(problem, N=256)) and not row.machine_reasons()
    assert "expected N <= 4, got 8" in replace(row, least=0, most=4).unsupported_reasons(problem)[0]


def test_the_choice_is_by_bucket_and_made_once(calls: list[tuple[str, Any]]) -> None:
    asked = calls.pop()[1]
    packed = pack(WEIGHT, "nm")
    for tokens in (1, 1, 16, 64, 65, 255, 256, 4096, 1, 65):
        assert linear_cuda(torch.ones(tokens, 4), packed, None, 2).shape == (tokens, 2)
    assert [name for name, _ in calls] == ["few"] * 4 + ["any"] * 4 + ["few", "any"]
    settled = len(asked)
    for tokens in (1, 17, 65, 300):
        linear_cuda(torch.ones(tokens, 4), packed, None, 2)
    assert len(asked) == settled, "a bucket that was met is a look-up"
    assert len({id(meta) for _, meta in calls}) == 1, "rows of a buffer share what it derives"


def test_a_changed_buffer_and_another_type_are_decided_anew(calls: list[tuple[str, Any]]) -> None:
    asked = calls.pop()[1]
    packed = pack(WEIGHT, "nm")
    x = torch.ones(1, 4)
    linear_cuda(x, packed, None, 2)
    before = len(asked)
    packed.copy_(pack(2 * WEIGHT, "nm"))
    linear_cuda(x, packed, None, 2)
    assert calls[0][1] is not calls[1][1] and len(asked) >= before
    half = pack(WEIGHT.half(), "nm")
    assert linear_cuda(x.half(), half, None, 2).dtype is torch.float16


def test_a_row_can_be_forced(calls: list[tuple[str, Any]]) -> None:
    calls.pop()
    any_row = registry.TRITON_ROWS[1]
    packed = pack(WEIGHT, "nm")
    linear_cuda(torch.ones(1, 4), packed, None, 2, row=any_row)
    linear_cuda(torch.ones(1, 4), packed, None, 2)
    assert [name for name, _ in calls] == ["any", "few"]
    with pytest.raises(RuntimeError, match="few cannot run this problem: expected N <= 64, got 65"):
        linear_cuda(torch.ones(65, 4), packed, None, 2, row=registry.TRITON_ROWS[0])


def test_float32_values_take_narrow_inputs(calls: list[tuple[str, Any]]) -> None:
    calls.pop()
    packed = pack(WEIGHT, "nm")
    y = linear_cuda(torch.ones(3, 4).bfloat16(), packed, torch.ones(2).bfloat16(), 2)
    assert y.dtype is torch.bfloat16


def test_zero_tokens_and_no_dimensions(calls: list[tuple[str, Any]]) -> None:
    calls.pop()
    packed = pack(WEIGHT, "nm")
    assert linear_cuda(torch.ones(0, 4), packed, None, 2).shape == (0, 2)
    assert linear_cuda(torch.ones(2, 0, 4), packed, None, 2).shape == (2, 0, 2)
    assert linear_cuda(torch.ones(4), packed, None, 2).shape == (2,)


def test_types_that_differ_are_told_as_torch_tells_them() -> None:
    packed = pack(WEIGHT.bfloat16(), "nm")
    for dtype, name in ((torch.float16, "Half"), (torch.float64, "Double"), (torch.int64, "Long")):
        said = f"mat1 and mat2 must have the same dtype, but got {name} and BFloat16"
        with pytest.raises(RuntimeError, match=said):
            linear_cuda(torch.ones(1, 4, dtype=dtype), packed, None, 2)
    with pytest.raises(RuntimeError, match=r"got Half and BFloat16.* try input.to\(torch.bfloat16"):
        linear_cuda(torch.ones(1, 4).half(), packed, None, 2)


def test_devices_that_differ_are_told_as_torch_tells_them() -> None:
    packed, x = pack(WEIGHT, "nm"), torch.ones(1, 4)
    said = r"Expected all tensors to be on the same device, but found at least two devices, "
    with pytest.raises(RuntimeError, match=said + r"meta \(input\) and cpu \(packed weight\)"):
        linear_cuda(x.to("meta"), packed, None, 2)
    with pytest.raises(RuntimeError, match=r"meta \(packed weight\); try input.to\('meta'\)"):
        linear_cuda(x, packed.to("meta"), None, 2)
    with pytest.raises(RuntimeError, match=r"cpu \(input\) and meta \(bias\)"):
        linear_cuda(x, packed, torch.ones(2, device="meta"), 2)


def test_a_panel_weight_on_a_gpu_says_which_formats_run_there() -> None:
    refusal = str(registry.no_row(Problem("linear", "panel", CUDA, torch.float16)))
    there = ", ".join(sorted({row.format for row in TRITON_ROWS if row.op == "linear"}))
    assert "expected a kernel for linear in format panel on cuda with torch.float16" in refusal
    assert f"convert_to_sparse(model.cuda()): {there} run there" in refusal
    assert "panel.linear.scalar: expected a CPU tensor, got cuda" in refusal
    on_mps = str(registry.no_row(Problem("linear", "panel", torch.device("mps"))))
    assert "try the dense layer, module.to_dense()" in on_mps


def test_a_panel_convolution_finds_no_device_row() -> None:
    packed, x = pack(torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 2, 2)
    geometry = ((1, 1), (1, 1), (0,) * 4, (1, 1), 1)
    with pytest.raises(RuntimeError, match="expected a kernel for conv in format panel"):
        conv_cuda(x, packed, None, 1, *geometry)
    with pytest.raises(RuntimeError, match=r"got torch\.float64"):
        conv_cuda(x.double(), packed, None, 1, *geometry)


@pytest.mark.parametrize(
    "format", [name for name in ("nm", "csr", "bsr") if name in formats.FORMATS]
)
def test_formats_of_the_gpu_run_on_the_cpu_by_native_rows(format: str) -> None:
    dense = nn.Linear(4, 2)
    dense.weight.data = WEIGHT.clone()
    sparse = SparseLinear.from_dense(dense, format)
    x = torch.randn(3, 4)
    assert torch.allclose(sparse(x), dense(x), atol=1e-6)
    conv = nn.Conv2d(4, 2, 1)
    conv.weight.data = WEIGHT[:, :, None, None].clone()
    image = torch.randn(1, 4, 3, 3)
    assert torch.allclose(SparseConv2d.from_dense(conv, format)(image), conv(image), atol=1e-6)


def test_values_in_half_are_refused_on_the_cpu() -> None:
    dense = nn.Linear(4, 2).to(torch.bfloat16)
    dense.weight.data = WEIGHT.bfloat16()
    sparse = SparseLinear.from_dense(dense, "nm").to(torch.bfloat16)
    assert open_packed(sparse.packed).dtype is torch.bfloat16
    with pytest.raises(RuntimeError, match="no CPU kernel computes in the value type of this nm"):
        sparse(torch.ones(1, 4, dtype=torch.bfloat16))


def test_load_is_for_device_rows() -> None:
    native: Row = registry.rows()[0]
    with pytest.raises(ValueError, match="expected a device row"):
        native.load()

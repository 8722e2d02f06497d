"""Which device row runs: decided once per weight, type and N bucket, and errors worded as torch's.

Rows are doubles here and tensors are on the CPU; the kernels have tests of their own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseinfer import SparseConv2d, SparseLinear, formats, pack
from sparseinfer.checkpoints.load_converted import load_converted
from sparseinfer.formats.handles import open_packed
from sparseinfer.kernels import dispatch, registry, triton
from sparseinfer.kernels.registry import EDGES, TRITON_ROWS, Problem, Row, bucket_of
from sparseinfer.ops.run_conv import conv_cuda
from sparseinfer.ops.run_linear import linear_cuda
from sparseinfer.timing.device_time import capture

CUDA = torch.device("cuda")
NM_ROW = next(row for row in TRITON_ROWS if row.name == "nm.linear.triton")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device; it would run modules compiled, captured, on streams, under autocast",
)
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
    row = replace(NM_ROW, refuses=refuses, meta=lambda info, sms: dict(info))
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
    row = replace(NM_ROW, least=256, refuses=lambda problem: [])
    problem = Problem("linear", "nm", CUDA, torch.float16, N=8)
    assert row.unsupported_reasons(problem) == ["expected N >= 256, got 8; try a larger batch"]
    assert not row.unsupported_reasons(replace(problem, N=256)) and not row.machine_reasons()
    assert "expected N <= 4, got 8" in replace(row, least=0, most=4).unsupported_reasons(problem)[0]


@pytest.mark.parametrize(
    ("types", "got", "text"),
    [
        (("float32",), torch.float16, "expected float32, got float16; try x.float()"),
        (("uint8",), torch.float32, "expected uint8, got float32; try x.to(torch.uint8)"),
        (("uint8", "int8"), torch.int16, "expected uint8, int8, got int16; try x.to(torch.uint8)"),
    ],
)
def test_a_native_row_takes_the_types_that_the_table_names(
    types: tuple[str, ...], got: torch.dtype, text: str
) -> None:
    scalar = next(row for row in registry.rows() if row.name == "panel.linear.scalar")
    row = replace(scalar, x_types=types)
    assert row.unsupported_reasons(Problem("linear", "panel", dtype=got)) == [text]
    assert row.machine_reasons() == [] and row.dtype == ", ".join(types)


@pytest.mark.parametrize(
    ("format", "dtype", "tokens", "bytes_kept"),
    [
        ("panel", torch.float32, 1, 0),
        ("bsr", torch.float16, 512, 0),
        ("csr", torch.float16, 1, 40 * 4),
        ("csr", torch.float32, 1, 40 * 6),
        ("nm", torch.bfloat16, 255, 64 // 8),
        ("nm", torch.bfloat16, 256, 64 // 8 + 64 * 2 * 9 // 16),
        ("nm", torch.float32, 256, 64 // 8),
    ],
)
def test_what_kernels_keep_beside_a_weight(
    format: str, dtype: torch.dtype, tokens: int, bytes_kept: int
) -> None:
    assert dispatch.kept_bytes(format, 64, 40, dtype, tokens) == bytes_kept


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


def test_a_row_may_take_narrow_inputs_beside_float32_values_itself(
    calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls.pop()
    seen: list[torch.dtype] = []
    any_row = registry.TRITON_ROWS[1]

    def run(x: Tensor, packed: Tensor, bias: Any, rows: int, *_: Any, meta: Any) -> Tensor:
        seen.append(x.dtype)
        return x.new_zeros(*x.shape[:-1], rows)

    monkeypatch.setattr(sys.modules["row_doubles"], "any", run)
    for mixed in (False, True):
        row = replace(any_row, mixed=mixed)
        monkeypatch.setattr(dispatch, "TRITON_ROWS", (row,))
        assert linear_cuda(torch.ones(3, 4).half(), pack(WEIGHT, "nm"), None, 2, row=row).dtype is (
            torch.float16
        )
    assert seen == [torch.float32, torch.float16]


# ---- under torch's tracers -----------------------------------------------------------------------


def _fake_cuda(format: str) -> tuple[FakeTensorMode, Tensor, Tensor, Tensor]:
    """A mode, and x, a packed weight and a bias that are fakes of a GPU's."""
    mode = FakeTensorMode()
    packed = pack(WEIGHT, format)
    with mode:
        return (
            mode,
            torch.empty(3, 4, device="cuda"),
            torch.empty(packed.numel(), dtype=torch.uint8, device="cuda"),
            torch.empty(2, device="cuda"),
        )


@pytest.mark.parametrize("format", ["panel", *sorted({row.format for row in TRITON_ROWS})])
def test_fakes_are_the_same_for_every_format(format: str) -> None:
    mode, x, packed, bias = _fake_cuda(format)
    with mode:
        y = torch.ops.sparseinfer.linear(x, packed, bias, 2, "relu", 0)
    assert (y.shape, y.dtype, y.device.type) == ((3, 2), torch.float32, "cuda")
    with mode, pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ops.sparseinfer.linear(x, torch.empty(4, dtype=torch.uint8), bias, 2, "none", 0)


def test_cuda_autocast_gives_its_own_type_under_a_tracer() -> None:
    mode, x, packed, bias = _fake_cuda("nm")
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)  # torch.autocast turns itself off without a GPU
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with mode:
            y = torch.ops.sparseinfer.linear(x, packed, bias, 2, "none", 0)
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
    assert y.dtype is torch.bfloat16


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_module_on_a_gpu_under_all_that_torch_does_with_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(256, 128).to("cuda", dtype)
    dense.weight.data *= torch.tensor([1.0, 0, 0, 1], device="cuda", dtype=dtype).repeat(64)
    sparse = SparseLinear.from_dense(dense, "nm", n=2, m=4).to(dtype)
    x = torch.randn(8, 256, device="cuda", dtype=dtype)
    close: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-2}
    with torch.no_grad():
        expected = dense(x)
        torch.testing.assert_close(sparse(x), expected, **close)
        compiled = torch.compile(sparse, fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, **close)
        for autocast in (torch.float16, torch.bfloat16):
            with torch.autocast("cuda", autocast):
                assert sparse(x).dtype is dense(x).dtype is autocast
        replay = capture(lambda: sparse(x), x.device)
        x.normal_()
        torch.testing.assert_close(replay(), dense(x), **close)
        streams = [torch.cuda.Stream() for _ in range(3)]
        outputs = []
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                outputs.append(sparse(x))
        torch.cuda.synchronize()
        for output in outputs:
            torch.testing.assert_close(output, dense(x), **close)
        assert sparse(x[:0]).shape == (0, 128)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        sparse(x.cpu())
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        sparse.cpu()(x)


@needs_gpu
def test_a_panel_module_moved_to_a_gpu_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"try converting after the move, convert_to_sparse"):
        SparseLinear.from_dense(nn.Linear(4, 2)).cuda()(torch.ones(1, 4, device="cuda"))


@pytest.mark.skipif(
    torch.cuda.device_count() < 2,
    reason="fewer than two CUDA devices; it would run a module on one that is not the current",
)
def test_a_module_on_another_gpu_than_the_current_one() -> None:
    dense = nn.Linear(4, 2).to("cuda:1")
    dense.weight.data = WEIGHT.to("cuda:1")
    x = torch.randn(3, 4, device="cuda:1")
    with torch.no_grad(), torch.cuda.device(0):
        y = SparseLinear.from_dense(dense, "nm", n=2, m=4)(x)
        torch.testing.assert_close(y, dense(x), rtol=1e-3, atol=1e-3)


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


def test_a_convolution_is_handed_to_its_row_with_its_geometry(
    calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls.pop()
    seen: list[Any] = []

    def run(x: Tensor, packed: Tensor, bias: Any, *options: Any, meta: Any) -> Tensor:
        seen.append(options)
        return x.new_zeros(x.shape[0], options[0], 3, 2)

    monkeypatch.setattr(sys.modules["row_doubles"], "any", run)
    row = replace(registry.TRITON_ROWS[1], op="conv")
    packed, x = pack(WEIGHT[:, :, None, None], "nm"), torch.ones(2, 4, 5, 4).half()
    geometry = ((1, 1), (2, 2), (0,) * 4, (1, 1), 1)
    y = conv_cuda(x, packed, torch.ones(2).half(), 2, *geometry, "zeros", "relu", row=row)
    assert y.dtype is torch.float16 and y.shape == (2, 2, 3, 2)
    assert seen == [(2, *geometry, "zeros", "relu")]
    with pytest.raises(RuntimeError, match=r"expected .* channels"):
        conv_cuda(x[:, :2], packed, None, 2, *geometry, row=row)


def test_a_panel_convolution_finds_no_device_row() -> None:
    packed, x = pack(torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 2, 2)
    geometry = ((1, 1), (1, 1), (0,) * 4, (1, 1), 1)
    with pytest.raises(RuntimeError, match="expected a kernel for conv in format panel"):
        conv_cuda(x, packed, None, 1, *geometry)
    with pytest.raises(RuntimeError, match=r"got torch\.float64"):
        conv_cuda(x.double(), packed, None, 1, *geometry)


@pytest.mark.parametrize("format", ["nm", "csr", "bsr"])
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


@pytest.mark.parametrize("bias", [False, True])
def test_a_dense_layer_made_of_one_in_half_computes_in_half(bias: bool) -> None:
    dense = nn.Linear(4, 2, bias).to(torch.bfloat16)
    dense.weight.data = WEIGHT.bfloat16()
    for format in ("nm", "csr") if bias else ("nm",):
        sparse = SparseLinear.from_dense(dense, format)
        # Models cast their inputs to it; csr keeps float32 and takes both.
        expected = torch.bfloat16 if format == "nm" else torch.float32
        assert sparse.weight.dtype is sparse.weight.sum().dtype is expected
        x = torch.ones(1, 4, dtype=torch.bfloat16)
        assert torch.equal(sparse.to_dense()(x), dense(x))


def test_a_state_in_half_loads_into_a_fresh_model_in_half() -> None:
    model = nn.Sequential(nn.Linear(4, 2)).to(torch.bfloat16)
    model[0].weight.data = WEIGHT.bfloat16()
    sparse = nn.Sequential(SparseLinear.from_dense(model[0], "nm"))
    loaded = load_converted(model, sparse.state_dict())
    assert loaded[0].bias.dtype is torch.bfloat16
    assert torch.equal(loaded[0].bias, model[0].bias)


@pytest.mark.parametrize(
    ("owners", "version", "reasons"),
    [({"triton": ["pytorch-triton"]}, "3.3.0+git1", 0), ({"triton": ["other"]}, "3.1.0", 1),
     ({}, "none", 0)],
)  # fmt: skip
def test_triton_of_a_distribution_of_another_name(
    monkeypatch: pytest.MonkeyPatch, owners: dict[str, list[str]], version: str, reasons: int
) -> None:
    def found(name: str) -> str:
        if name == "triton":
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", found)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert len(triton._triton_reasons.__wrapped__()) == reasons


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (3, 4)])
def test_a_weight_of_another_shape_is_refused(
    calls: list[tuple[str, Any]], shape: tuple[int, ...]
) -> None:
    with pytest.raises(RuntimeError, match=r"weight of 2 rows and two dimensions, got \[.*; try"):
        linear_cuda(torch.ones(1, 4), pack(torch.zeros(shape), "nm"), None, 2)
    assert calls == [("asked", [])]


def test_load_is_for_device_rows() -> None:
    native: Row = registry.rows()[0]
    with pytest.raises(ValueError, match="expected a device row"):
        native.load()

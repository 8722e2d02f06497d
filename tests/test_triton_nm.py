"""The Triton N:M linear kernel: interpreted on the CPU, and compiled ahead for sm_80 and sm_90.

Triton fixes at its first import whether kernels are interpreted, and torch may import it at any
moment. So the checks (triton_nm_checks.py) run in worker processes started with TRITON_INTERPRET
set one way or the other: this process, and with it the rest of the suite, never sees the variable.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton_nm_checks as checks

import sparseinfer.kernels.triton as light
from sparseinfer.kernels.row import Problem
from sparseinfer.kernels.triton.nm_planes import NmMeta, nm_limits

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; it would run the kernels in Triton's interpreter",
)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="no CUDA device of compute capability 8.0; it would run the compiled kernels",
)

Check = Callable[..., None]


@contextlib.contextmanager
def worker(**environment: str) -> Iterator[Callable[..., Any]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        pool = concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn")
        )
        pool.submit(os.getpid).result()  # the process starts while the environment is patched
    with pool:
        yield lambda check, *args, **kwargs: pool.submit(check, *args, **kwargs).result()


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    with worker(TRITON_INTERPRET="1") as call:
        yield call


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    cache = tmp_path_factory.mktemp("triton-cache")
    with worker(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache)) as call:
        yield call


SHAPES = [
    (0, 5, 8),
    (1, 1, 1),
    (1, 33, 261),
    (2, 5, 3),
    (15, 17, 64),
    (16, 16, 256),
    (17, 65, 130),
    (33, 70, 37),
    (70, 130, 67),
]
BUCKETS = {"float32": (1, 2, 64, 65)} | dict.fromkeys(["float16", "bfloat16"], (1, 2, 32, 64, 65))
COMPILED = [  # the quick tests of test_compiled_rows.py are sm_90's
    pytest.param(
        capability, dtype, bucket, list(checks.ACTIVATIONS)[i % 8], 1 + (i + 1) % 3, marks=marks
    )
    for capability, marks in ((80, ()), (90, pytest.mark.slow))
    for i, (dtype, bucket) in enumerate((d, b) for d in checks.DTYPES for b in BUCKETS[d])
]


@pytest.mark.sampled(4)
@needs_triton
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", checks.ONE_QUICK)
def test_matches_float64(interpreted: Check, dtype: str, shape: tuple[int, int, int]) -> None:
    interpreted(checks.check_oracle, dtype, shape, "none", True, 2, "cpu")
    interpreted(checks.check_integers, dtype, shape, 2, "cpu")


@needs_triton
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("activation", checks.ACTIVATIONS)
@pytest.mark.parametrize("dtype", checks.ONE_QUICK)
def test_activation(interpreted: Check, dtype: str, activation: str, biased: bool) -> None:
    interpreted(checks.check_oracle, dtype, (3, 18, 21), activation, biased, 2, "cpu")
    if not biased:
        interpreted(checks.check_activation_curve, dtype, activation, "cpu")


@needs_triton
@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("dtype", checks.ONE_QUICK)
def test_other_n_of_four(interpreted: Check, dtype: str, n: int) -> None:
    interpreted(checks.check_oracle, dtype, (5, 19, 46), "none", True, n, "cpu")
    interpreted(checks.check_integers, dtype, (5, 19, 30), n, "cpu")


@needs_triton
@pytest.mark.parametrize("dtype", checks.ONE_QUICK)
def test_nonfinite_and_signed_zero(interpreted: Check, dtype: str) -> None:
    interpreted(checks.check_nonfinite_and_zeros, dtype, "cpu")


@needs_triton
@pytest.mark.parametrize("dtype", checks.ONE_QUICK)
def test_input_layouts(interpreted: Check, dtype: str) -> None:
    interpreted(checks.check_layouts, dtype, "cpu")


@needs_triton
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("dtype", checks.ONE_QUICK)
def test_native_packed_buffer(interpreted: Check, dtype: str, n: int) -> None:
    interpreted(checks.check_native_buffer, dtype, n)


@needs_triton
@pytest.mark.parametrize("dtype", checks.ONE_QUICK)
def test_module(interpreted: Check, dtype: str) -> None:
    interpreted(checks.check_module, dtype, "cpu")


@needs_triton
@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("dtype", checks.ONE_QUICK)
def test_splits_of_k(interpreted: Check, dtype: str, tokens: int) -> None:
    interpreted(checks.check_splits, dtype, tokens, "cpu")


@needs_triton
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_one_token_of_any_n(interpreted: Check, n: int) -> None:
    for columns in (1, 2, 3, 5, 1030):  # 1030: the high nibbles hold a ragged group
        interpreted(checks.check_oracle, "float16", (1, 3, columns), "none", True, n, "cpu")


@needs_triton
def test_derived_of_a_buffer(interpreted: Check) -> None:
    interpreted(checks.check_lane_plane_is_kept)


@needs_triton
def test_errors_and_examples(interpreted: Check, compiled: Check) -> None:
    interpreted(checks.check_errors)
    interpreted(checks.check_examples)
    compiled(checks.check_cpu_tensors_without_interpreter)


def _assembler() -> str | None:
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    bundled = pathlib.Path(spec.origin).parent / "backends/nvidia/bin/ptxas"
    return str(bundled) if bundled.exists() else shutil.which("ptxas")


needs_assembler = pytest.mark.skipif(
    _assembler() is None,
    reason="no ptxas, Triton's or the system's; it would compile the kernels for sm_80 and sm_90",
)


@needs_assembler
@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype", "bucket", "activation", "n"), COMPILED)
def test_compiles_ahead(
    compiled: Check, capability: int, dtype: str, bucket: int, activation: str, n: int
) -> None:
    compiled(checks.compile_ahead, capability, dtype, bucket, activation, n, False)


@pytest.mark.sampled(1)
@needs_assembler
@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_compiles_ahead_with_unit_and_ragged_arguments(compiled: Check, dtype: str) -> None:
    compiled(checks.compile_ahead, 80, dtype, 1, "none", 2, True)


@needs_gpu
@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_on_gpu(compiled: Check, dtype: str) -> None:
    for shape in [*SHAPES, (1, 4096, 4096), (65, 512, 1024)]:
        compiled(checks.check_oracle, dtype, shape, "none", True, 2, "cuda")
        if shape[2] <= 256:
            compiled(checks.check_integers, dtype, shape, 2, "cuda")
    for activation in checks.ACTIVATIONS:
        compiled(checks.check_oracle, dtype, (3, 18, 21), activation, True, 1, "cuda")
        compiled(checks.check_activation_curve, dtype, activation, "cuda")
    compiled(checks.check_nonfinite_and_zeros, dtype, "cuda")
    compiled(checks.check_layouts, dtype, "cuda")
    compiled(checks.check_splits, dtype, 1, "cuda")
    compiled(checks.check_splits, dtype, 2, "cuda")
    compiled(checks.check_graph, dtype)
    compiled(checks.check_module, dtype, "cuda")


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(light, "_triton_reasons", lambda: [])

    def reasons(device: str, dtype: torch.dtype, **pattern: int) -> list[str]:
        return nm_limits(Problem("linear", "nm", torch.device(device), dtype, **pattern))

    assert "got cpu" in reasons("cpu", torch.float16)[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "got none that torch can use" in reasons("cuda", torch.float16)[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "capability >= 8.0, got 7.5" in reasons("cuda", torch.float16)[0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert reasons("cuda", torch.bfloat16) == []
    assert "got float64" in reasons("cuda", torch.float64)[0]
    for n, m in [(4, 8), (1, 2), (0, 4), (5, 4)]:
        assert f"got {n}:{m}" in reasons("cuda", torch.float16, n=n, m=m)[0]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert reasons("cpu", torch.float16) == []


def test_reasons_name_a_missing_or_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = light._triton_reasons.__wrapped__  # without its cache
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "got none installed" in reasons()[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.0")
    assert "expected Triton >= 3.2, got 2.1.0" in reasons()[0]


def test_multiprocessors_of_the_buffers_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseinfer import formats
    from sparseinfer.formats.handles import open_packed
    from sparseinfer.kernels.triton.csr_rows import CsrMeta

    asked = []
    monkeypatch.setattr(
        "sparseinfer.formats.handles.multiprocessors", lambda on: asked.append(on) or 7
    )
    for name in ("nm", "csr"):
        handle = open_packed(formats.pack(torch.eye(8), name))
        meta = handle.meta(NmMeta.from_info) if name == "nm" else handle.meta(CsrMeta.from_info)
        assert meta.sms == 7
    assert asked == [torch.device("cpu")] * 2


def test_meta_refuses_another_format() -> None:
    with pytest.raises(ValueError, match="expected a packed buffer in the nm format, got csr"):
        NmMeta.from_info({"format": "csr"})


def test_package_imports_without_triton() -> None:
    # None in sys.modules makes every import of triton fail, as where it is not installed.
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from sparseinfer.kernels.triton import device_reasons\n"
        "print(device_reasons('cuda')[0])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "expected Triton, got none installed" in done.stdout

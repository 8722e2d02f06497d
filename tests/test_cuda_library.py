"""The optional CUDA library: absent without complaint, its checks, its build switch, its row."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseinfer.kernels import registry
from sparseinfer.kernels.cuda import library
from sparseinfer.kernels.cuda.nm24_linear import check_call, limits, nm24_linear

ROOT = Path(__file__).resolve().parent.parent
X, STREAM, NONE = torch.ones(3, 130).half(), torch.zeros(2 * 4608).byte(), torch.zeros(0).byte()


def test_row_is_disabled_and_says_why() -> None:
    (row,) = (row for row in registry.rows() if row.name == "nm.linear.mma_sp")
    problem = registry.Problem("linear", "nm", torch.device("cuda"), torch.float16)
    reasons = row.unsupported_reasons(problem)
    assert "expected a kernel that a GPU has proven, got one that has only been" in reasons[0]
    assert row.machine_reasons()
    assert [other for other in registry.rows() if other.off] == [row]
    with pytest.raises(ValueError, match=r"got nm\.linear\.mma_sp"):
        row.load()
    assert "expected op conv" in row.unsupported_reasons(registry.Problem("conv", "nm"))[0]


def test_row_names_the_limits_of_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / "lib.so")
    fits = registry.Problem("linear", "nm", torch.device("cuda"), torch.half, N=64)
    assert "got none built; try SPARSEINFER_CUDA=ON" in limits(fits)[0]
    library.PATH.touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert limits(replace(fits, dtype=torch.bfloat16)) == []
    assert limits(replace(fits, n=1, N=1)) == []

    def only(text: str, **changed: Any) -> None:
        (reason,) = limits(replace(fits, **changed))
        assert text in reason

    only("got 4:8; try packing with n=2", n=4, m=8)
    only("got float32; try input.half()", dtype=torch.float32)
    only("expected at most 64 tokens, got 65; try dense", N=65)
    only("expected a CUDA device, got cpu", device=torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    only("capability >= 8.0, got 7.5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    only("got none that torch can use")


def test_import_does_not_load_the_library() -> None:
    script = (
        "import ctypes\n"
        "def refuse(*args, **kwargs): raise AssertionError('loaded a library')\n"
        "import torch; ctypes.CDLL = refuse\n"
        "import sparseinfer.kernels.cuda.nm24_linear, sparseinfer.kernels.registry\n"
        "assert sparseinfer.kernels.registry.rows()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_absent_foreign_and_old_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / "libsparseinfer_cuda.so")
    load = library.load.__wrapped__  # without its cache
    with pytest.raises(RuntimeError, match="got none built; try SPARSEINFER_CUDA=ON pip install"):
        load()
    library.PATH.write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match=r"expected a loadable .* try building it again"):
        load()
    source = tmp_path / "old.c"
    source.write_text("int si_cuda_version(void) { return 0; }")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library.PATH], check=True)
    with pytest.raises(RuntimeError, match=r"expected version 1 of .*, got 0; try building"):
        load()


def test_arguments_that_do_not_fit() -> None:
    assert check_call(X, STREAM, torch.ones(8).half(), 8, "relu", NONE) == 3

    def refused(kind: type[Exception], match: str, **changed: Any) -> None:
        arguments: dict[str, Any] = {
            "x": X, "stream": STREAM, "bias": None, "out_features": 8, "activation": "none",
            "workspace": NONE,
        }  # fmt: skip
        with pytest.raises(kind, match=match):
            nm24_linear(**(arguments | changed))

    refused(RuntimeError, r"on the same device, but got meta \(input\), cpu", x=X.to("meta"))
    refused(RuntimeError, r"cpu \(weight stream\), meta \(workspace\)", workspace=NONE.to("meta"))
    refused(RuntimeError, "expected an input of at least one feature", x=X[0, 0])
    refused(RuntimeError, "expected an input of at least one feature", x=X[:, :0])
    refused(RuntimeError, r"expected a bias of torch.float16 of shape \[8\]", bias=torch.ones(8))
    refused(RuntimeError, r"of shape \[7\]; try", bias=torch.ones(7).half())
    refused(ValueError, "expected activation to be one of none, relu", activation="mish")
    refused(ValueError, r"weight stream as contiguous 1-D uint8.* stream.clone", stream=STREAM[::2])
    refused(ValueError, "workspace as contiguous 1-D uint8", workspace=NONE[None])
    refused(ValueError, r"of 9216 bytes for \[8, 130\], got 4608", stream=STREAM[:4608])
    refused(ValueError, r"of 18432 bytes for \[33, 130\], got 9216", out_features=33)
    refused(RuntimeError, r"nm.linear.mma_sp cannot run .* got cpu; try moving")


def configure(tmp_path: Path, choice: str, **environment: str) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))
    if cmake is None:
        pytest.skip("no cmake; it would configure a build with SPARSEINFER_CUDA")
    return subprocess.run(
        [cmake, "-S", str(ROOT), "-B", str(tmp_path), f"-DSPARSEINFER_CUDA={choice}",
         "-DSPARSEINFER_TESTS=OFF"],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_build_switch(tmp_path: Path) -> None:
    stale = tmp_path / "python" / "libsparseinfer_cuda.so"
    stale.parent.mkdir()
    stale.touch()
    assert configure(tmp_path, "OFF").returncode == 0
    assert not stale.exists(), "a library of an earlier build is not installed"
    wrong = configure(tmp_path, "MAYBE")
    assert wrong.returncode != 0
    assert "expected SPARSEINFER_CUDA to be AUTO, ON or OFF, got 'MAYBE'" in wrong.stderr
    done = configure(tmp_path, "ON")
    if done.returncode != 0:
        assert "expected nvcc on PATH for SPARSEINFER_CUDA=ON" in done.stderr

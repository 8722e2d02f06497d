"""What a measurement ran on: machine, versions and commit, without host names or paths."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent

# CPU flags that decide which kernels of ours or of the vendor libraries can run.
FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip

# Settings that change which kernel runs or on how many threads.
VARIABLES = (
    "SPARSEINFER_ISA", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT",
    "GOMP_CPU_AFFINITY", "MKL_NUM_THREADS", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY", "MKL_DEBUG_CPU_TYPE",
)  # fmt: skip


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _cpuinfo() -> dict[str, str]:
    first = _read("/proc/cpuinfo").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(f"{index}/{name}") for name in ("level", "type", "size"))
        caches[f"L{level}{'' if kind == 'Unified' else kind[0].lower()}"] = size
    return caches


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Return the CPU, its features, cores and caches, the memory and the operating system."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = platform.system()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model_stepping": [
            cpu[key] for key in ("cpu family", "model", "stepping") if key in cpu
        ],
        "architecture": platform.machine(),
        "features": [name for name in FEATURES if name in flags],
        "cores": _usable_cores(),
        "caches": _caches(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": system,
        "load_at_start": round(os.getloadavg()[0], 2),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def describe_versions() -> dict[str, Any]:
    """Return the versions of what is measured and of the libraries dense PyTorch runs on."""
    from sparseinfer import _C

    libraries = [
        line.strip(" -")
        for line in torch.__config__.show().splitlines()
        if any(name in line for name in ("Math Kernel Library", "MKL-DNN v", "oneDNN v"))
    ]
    return {
        "sparseinfer": _C.version(),
        "threads_backend": _C.threads_backend(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_libraries": libraries,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe_commit() -> dict[str, Any]:
    """Return the commit's hash and whether tracked files differ from it; None where unknown."""
    commit = _git("rev-parse", "HEAD")
    status = None if commit is None else _git("status", "--porcelain", "--untracked-files=no")
    return {"hash": commit, "dirty": None if status is None else bool(status)}

"""`sparseinfer doctor`: what is installed, what can run here, and why the rest cannot.

Every import of a package happens inside a probe: whatever fails becomes a line of the diagnosis.
"""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape

from sparseinfer.timing.machine import (
    check_isa,
    cpu_features,
    cpu_model,
    package_version,
    selected_isa,
    usable_cores,
)

__all__ = ["diagnose", "healthy", "show"]

OPERATIONS = ("linear", "conv")
# Imported, because an installed package may still not load.
MODULES = ("sparseinfer", "torch", "numpy", "triton")
# Only looked up: some bring an OpenMP runtime along, which would be the doctor's own doing.
PACKAGES = ("scikit-learn", "matplotlib", "threadpoolctl")
# A tiny layer's outputs differ from dense by far less than this, and by far more when wrong.
TOLERANCE = 1e-4


def diagnose() -> dict[str, Any]:
    """Return the diagnosis as plain dicts, lists, strings and numbers; never raises.

    A section that could not be found out is {"error": why}.

    Example:
        >>> sorted(diagnose())
        ['cpu', 'gpu', 'isa', 'operations', 'rows', 'threads', 'versions']
    """
    return {
        "versions": _probe(_versions),
        "cpu": _probe(_cpu),
        "isa": _probe(_isa),
        "rows": _probe(_rows),
        "threads": _probe(_threads),
        "gpu": _probe(_gpu),
        "operations": {
            "linear": _probe(_run_linear),
            "conv": _probe(_run_conv),
        },
    }


def healthy(diagnosis: dict[str, Any]) -> bool:
    """Return whether both linear and convolution layers run sparse here."""
    return all("error" not in diagnosis["operations"][name] for name in OPERATIONS)


def _probe(find_out: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return find_out()
    except Exception as error:  # A broken installation fails in any way; the doctor tells which.
        return {"error": _plain(error)}


def _plain(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def _versions() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
            versions[name] = str(getattr(module, "__version__", "of unknown version"))
        except Exception as error:  # A shared library that does not load raises what it likes.
            missing = isinstance(error, ModuleNotFoundError) and error.name == name
            versions[name] = "not installed" if missing else f"does not load: {_plain(error)}"
    versions.update((name, package_version(name)) for name in PACKAGES)
    return versions


def _cpu() -> dict[str, Any]:
    return {
        "model": cpu_model(),
        "architecture": platform.machine(),
        "features": cpu_features(),
        "usable_cores": usable_cores(),
    }


def _isa() -> dict[str, Any]:
    from sparseinfer import native

    check_isa()
    return {
        "selected": selected_isa(),
        "SPARSEINFER_ISA": os.environ.get("SPARSEINFER_ISA"),
        "isas": native.isas(),
    }


def _rows() -> dict[str, Any]:
    from sparseinfer.kernels.registry import rows

    return {
        "rows": [
            {
                "name": row.name,
                "format": row.format,
                "op": row.op,
                "dtype": row.dtype,
                "isa": row.isa,
                "reasons": row.machine_reasons(),
            }
            for row in rows()
        ]
    }


def _threads() -> dict[str, Any]:
    import torch

    # Asked after torch is loaded: the native library joins the thread pool it finds.
    from sparseinfer import native

    threads: dict[str, Any] = {
        "torch_threads": torch.get_num_threads(),
        "usable_cores": usable_cores(),
        "native_backend": native.threads_backend(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }
    try:
        pools = importlib.import_module("threadpoolctl").threadpool_info()
    except ImportError:
        threads["openmp_runtimes"] = None
    else:
        threads["openmp_runtimes"] = [
            os.path.basename(pool["filepath"]) for pool in pools if pool["user_api"] == "openmp"
        ]
    return threads


def _gpu() -> dict[str, Any]:
    import torch

    gpu: dict[str, Any] = {"torch_built_for_cuda": torch.version.cuda, "devices": []}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            name = torch.cuda.get_device_name(index)
            gpu["devices"].append(f"{name} (compute capability {major}.{minor})")
    try:
        gpu["triton"] = str(importlib.import_module("triton").__version__)
    except Exception as error:  # Triton without a driver fails in several ways.
        gpu["triton_error"] = _plain(error)
    return gpu


def _run_linear() -> dict[str, Any]:
    import torch

    from sparseinfer.layers.linear_conv import SparseLinear

    dense = _seeded(lambda: torch.nn.Linear(64, 32))
    return _compare(dense, SparseLinear.from_dense(dense), torch.ones(5, 64))


def _run_conv() -> dict[str, Any]:
    import torch

    from sparseinfer.layers.linear_conv import SparseConv2d

    dense = _seeded(lambda: torch.nn.Conv2d(8, 16, 3, padding=1))
    return _compare(dense, SparseConv2d.from_dense(dense), torch.ones(2, 8, 7, 9))


def _seeded(build: Callable[[], Any]) -> Any:
    """Build a layer whose small weights are zero, the same at every call."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        layer = build()
        layer.weight[layer.weight.abs() < layer.weight.abs().mean()] = 0.0
    return layer


def _compare(dense: Any, sparse: Any, inputs: Any) -> dict[str, Any]:
    import torch

    with torch.inference_mode():
        difference = float((dense(inputs) - sparse(inputs)).abs().max())
    if not difference < TOLERANCE:
        raise RuntimeError(
            f"expected the dense layer's outputs, got a difference of {difference:.1e}; "
            "try another SPARSEINFER_ISA, and report this"
        )
    return {"format": sparse.format, "largest_difference": difference}


def show(diagnosis: dict[str, Any], console: Console) -> None:
    """Print the diagnosis for people."""
    for title, lines in (
        ("versions", _version_lines(diagnosis["versions"])),
        ("processor", _cpu_lines(diagnosis["cpu"], diagnosis["isa"])),
        ("kernels", _row_lines(diagnosis["rows"])),
        ("threads", _thread_lines(diagnosis["threads"])),
        ("GPU", _gpu_lines(diagnosis["gpu"])),
    ):
        console.print(f"[bold]{title}[/bold]")
        for line in lines:
            console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    console.print("[bold]verdict[/bold]")
    for name in OPERATIONS:
        found = diagnosis["operations"][name]
        label = {"linear": "linear layers", "conv": "convolutions"}[name]
        if "error" in found:
            line = f"[red]{label} cannot run sparse here:[/red] {escape(found['error'])}"
        else:
            line = f"[green]{label} run sparse here[/green] (tried one, its outputs are right)"
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _version_lines(versions: dict[str, Any]) -> list[str]:
    return [f"{name:<14}{version}" for name, version in versions.items()]


def _cpu_lines(cpu: dict[str, Any], isa: dict[str, Any]) -> list[str]:
    if "error" in cpu:
        return [cpu["error"]]
    lines = [
        f"{cpu['model']} ({cpu['architecture']}), {cpu['usable_cores']} usable cores",
        f"features that kernels use: {' '.join(cpu['features']) or 'none found'}",
    ]
    if "error" in isa:
        return [*lines, f"the native library cannot be used: {isa['error']}"]
    wish = isa["SPARSEINFER_ISA"]
    why = f"SPARSEINFER_ISA={wish}" if wish else "the best here; SPARSEINFER_ISA is not set"
    lines.append(f"instruction set selected: {isa['selected']} ({why})")
    return lines


def _thread_lines(threads: dict[str, Any]) -> list[str]:
    if "error" in threads:
        return [threads["error"]]
    lines = [
        f"torch uses {threads['torch_threads']} of {threads['usable_cores']} usable cores",
        f"native kernels run on: {threads['native_backend']}",
    ]
    if threads["torch_threads"] > threads["usable_cores"]:
        lines.append("more threads than cores is slow; try torch.set_num_threads")
    runtimes = threads["openmp_runtimes"]
    if runtimes is None:
        lines.append("OpenMP runtimes: unknown; pip install threadpoolctl to see them")
    elif len(runtimes) > 1:
        lines.append(
            f"{len(runtimes)} OpenMP runtimes are loaded ({', '.join(runtimes)}): their threads "
            "fight for the cores; try an environment where all packages share one"
        )
    else:
        lines.append(f"OpenMP runtimes loaded: {', '.join(runtimes) or 'none'}")
    return lines


def _gpu_lines(gpu: dict[str, Any]) -> list[str]:
    if "error" in gpu:
        return [gpu["error"]]
    if gpu["devices"]:
        lines = list(gpu["devices"])
    elif gpu["torch_built_for_cuda"]:
        lines = [f"none that torch can use (torch is built for CUDA {gpu['torch_built_for_cuda']})"]
    else:
        lines = ["none: this torch is built without CUDA; everything runs on the CPU"]
    if "triton" in gpu:
        needs = "" if gpu["devices"] else "; its kernels need a GPU"
        lines.append(f"Triton {gpu['triton']} can be imported{needs}")
    else:
        lines.append(f"Triton cannot be imported: {gpu['triton_error']}")
    return lines


def _row_lines(rows: dict[str, Any]) -> list[str]:
    """The rows, best first, those of one instruction set and with one answer on one line."""
    if "error" in rows:
        return [rows["error"]]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows["rows"]:
        key = (row["isa"], row["dtype"], "; ".join(row["reasons"]))
        groups.setdefault(key, []).append(row["name"].removesuffix(f".{row['isa']}"))
    lines = []
    for (isa, dtype, reasons), names in groups.items():
        lines.append(f"{'no ' if reasons else 'yes'}  {isa:<12}{' '.join(names)}  ({dtype})")
        if reasons:
            lines.append(f"     {reasons}")
    return lines

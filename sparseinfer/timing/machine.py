"""What the machine is, in the words its owner would use: processor, features, cores, versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

HOST = "host"
"""The target that is this machine."""

# The features that decide which kernels run, by the names Linux gives them on x86 and on ARM.
KERNEL_FEATURES = (
    "avx2", "fma", "f16c", "bmi2",
    "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first processor's entries; empty where the system has no such file."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_model() -> str:
    """Return the processor's name, or its architecture where the system does not tell.

    Example:
        >>> cpu_model() != ""
        True
    """
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Return those features of this processor that matter to the kernels.

    Example:
        >>> set(cpu_features()) <= set(KERNEL_FEATURES)
        True
    """
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return [feature for feature in KERNEL_FEATURES if feature in present]


def cache_sizes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> list[str]:
    """Return the first processor's caches, e.g. "L1 Data 32K"; none where the system is silent.

    Example:
        >>> cache_sizes(Path("nowhere"))
        []
    """
    caches = []
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        caches.append(f"L{level} {kind} {size}")
    return caches


def usable_cores() -> int:
    """Return how many processors this process may run on.

    Example:
        >>> usable_cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_version(name: str) -> str:
    """Return the installed version of a package, or "not installed".

    Example:
        >>> package_version("no-such-package")
        'not installed'
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def isa_refusal() -> str:
    """Why the instruction set that `SPARSEINFER_ISA` names cannot be used; empty where it can.

    Example:
        >>> isa_refusal()
        ''
    """
    from sparseinfer import native

    wish = os.environ.get("SPARSEINFER_ISA", "")
    isas = {isa["name"]: isa for isa in native.isas()}
    if not wish or (wish in isas and isas[wish]["supported"]):
        return ""
    # What the wish itself forbids the processor has all the same.
    here = [
        name
        for name, isa in isas.items()
        if isa["supported"] or isa["reason"].startswith("SPARSEINFER_ISA")
    ]
    if wish not in isas:
        return (
            f"expected SPARSEINFER_ISA to be one of {', '.join(isas)}, got {wish!r}; "
            f"try SPARSEINFER_ISA={here[-1]}, or unset it"
        )
    return (
        f"expected SPARSEINFER_ISA to be one that runs here ({', '.join(here)}), got {wish!r}: "
        f"{isas[wish]['reason']}; try SPARSEINFER_ISA={here[-1]}, or unset it"
    )


def target_facts(name: str) -> dict[str, Any]:
    """What a target is: `name`, `features`, bytes of the caches `l1` and `l2`, and `threads`.

    Raises:
        ValueError: there is no such target.

    Example:
        >>> target_facts("aarch64-neon")["features"]
        ['neon']
    """
    from sparseinfer import native

    known = {target["name"]: target for target in native.targets()}
    if name not in known:
        raise ValueError(f"expected a target of {', '.join(known)}, got {name!r}; try {HOST!r}")
    return known[name]


def target_isa(name: str) -> str:
    """The widest instruction set of a target that has kernels of float weights, of which the rates
    are; `SPARSEINFER_ISA` does not count.

    Raises:
        ValueError: there is no such target.

    Example:
        >>> target_isa("aarch64-neon"), target_isa("riscv64")
        ('neon', 'scalar')
    """
    from sparseinfer import native

    features = set(target_facts(name)["features"])
    of_floats = {row["isa"] for row in native.rows() if "float32" in row["weight_types"]}
    isas = [isa for isa in native.isas() if isa["name"] in of_floats]
    return [str(isa["name"]) for isa in isas if features.issuperset(isa["features"])][-1]


def check_isa() -> None:
    """Raise ValueError where `SPARSEINFER_ISA` names an instruction set that cannot be used here.

    Example:
        >>> check_isa()
    """
    refusal = isa_refusal()
    if refusal:
        raise ValueError(refusal)


def selected_isa() -> str:
    """Return the widest instruction set that the native kernels use here, e.g. "avx512".

    Example:
        >>> selected_isa() in ("scalar", "neon", "avx2", "avx512")
        True
    """
    from sparseinfer import native

    return str(native.rows()[native.select("panel", "linear")]["isa"])

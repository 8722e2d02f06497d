"""Cap our kernels and torch's libraries to one instruction set: ``benchmarks.run --isa avx2``.

Each library reads its cap from the environment once, when it starts, so that the benchmark begins
anew with that environment. Then it asks each what it uses: a ratio between a capped and an uncapped
contender says nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from sparseinfer.timing.machine import selected_isa

CAPS = {
    "avx2": {
        "SPARSEINFER_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
"""The environment that caps each library, by the name of the option."""

NAMED = {"avx2": r"AVX2\b"}
"""How oneDNN and MKL name it."""

WIDER = {"avx2": r"AVX-?512|AVX10|AMX"}
"""How they name what the cap forbids."""

MKL_SILENT = (
    "does not say: MKL obeys the cap on Intel's processors and ignores it on AMD's, where its "
    "kernels for Zen use AVX2 with and without it"
)
"""Seen of MKL 2024.2 by a profile of F.linear on Zen 4 and a disassembly of what ran."""

# Large enough for oneDNN: torch computes smaller convolutions with MKL.
PROBE = """
import torch
with torch.inference_mode():
    torch.nn.functional.linear(torch.ones(8, 64), torch.ones(64, 64))
    torch.nn.functional.conv2d(torch.ones(1, 64, 56, 56), torch.ones(64, 64, 3, 3))
print("aten:", torch.backends.cpu.get_cpu_capability())
"""


class CapError(RuntimeError):
    """A library does not obey the cap, so that nothing may be compared."""


def check_name(isa: str) -> None:
    """Refuse what is no cap.

    Raises:
        ValueError: there is no cap of that name.
    """
    if isa not in CAPS:
        raise ValueError(f"expected an --isa of {', '.join(CAPS)}, got {isa!r}, try --isa avx2")


def is_set(isa: str, environment: Mapping[str, str]) -> bool:
    """Return whether the environment caps every library.

    Example:
        >>> is_set("avx2", {}), is_set("avx2", CAPS["avx2"])
        (False, True)
    """
    return all(environment.get(name) == value for name, value in CAPS[isa].items())


def restart(isa: str, module: str, arguments: Sequence[str]) -> None:
    """Begin ``python -m module arguments`` anew in a capped environment; return if it is capped."""
    if not is_set(isa, os.environ):
        sys.stdout.flush()
        command = [sys.executable, "-m", module, *arguments]
        os.execve(sys.executable, command, {**os.environ, **CAPS[isa]})


def probe() -> str:
    """Return what oneDNN, MKL and torch print about themselves in a process of this environment.

    Raises:
        CapError: it failed.
    """
    verbose = {**os.environ, "ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=verbose, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise CapError(f"torch failed in a capped process: {done.stderr.strip()[-500:]}")
    return done.stdout


def obeyed(isa: str, ours: str, output: str) -> dict[str, str]:
    """Return what each library says that it uses: ``ours``, and in the ``output`` of a probe.

    Raises:
        CapError: one of them does not obey the cap, or torch's build has no oneDNN to ask.
    """

    def line(pattern: str) -> str:
        found = re.search(pattern, output, re.MULTILINE)
        return found[1].strip() if found else ""

    said = {
        "sparseinfer": ours,
        "aten": line(r"^aten: (.*)"),
        "onednn": line(r"^onednn_verbose,.*info,cpu,isa:(.*)"),
        "onednn_convolution": line(r"^onednn_verbose,.*exec,cpu,convolution,([^,]*)"),
        "mkl": line(r"^MKL_VERBOSE (?:oneMKL|Intel).*?architecture (.*?) processors"),
    }
    for name, text in said.items():
        named = re.search(NAMED[isa], text, re.IGNORECASE)
        wider = re.search(WIDER[isa], text, re.IGNORECASE)
        if name == "mkl" and not named and not wider:
            said[name] = MKL_SILENT if "MKL_VERBOSE" in output else "not in this build of torch"
        elif not named or wider:
            raise CapError(f"expected {name} capped to {isa}, got {text or 'nothing'!r}")
    return said


def check(isa: str) -> dict[str, str]:
    """Return what each library uses in this process's environment.

    Raises:
        CapError: one of them does not obey the cap.
    """
    return obeyed(isa, selected_isa(), probe())

"""The CUDA kernels compiled for sm_80 and sm_90a: no spills, and the instructions that are meant.

Compiling needs nvcc and no GPU. It takes about 25 s, so `make cuda` and .ci/run do it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
NVCC = shutil.which("nvcc")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        NVCC is None, reason="no nvcc on PATH; it would compile csrc/cuda for sm_80 and sm_90a"
    ),
]


def disassembler() -> str | None:
    """The CUDA toolkit's cuobjdump, or the one that Triton brings."""
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    bundled = Path(spec.origin).parent if spec and spec.origin else Path()
    bundled = bundled / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else None


@pytest.fixture(scope="module", params=["sm_80", "sm_90a"])
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    cubin = tmp_path_factory.mktemp("cuda") / f"{request.param}.cubin"
    assert NVCC is not None
    done = subprocess.run(
        [NVCC, "-std=c++17", "-O3", "-Werror", "all-warnings", f"-arch={request.param}", "-cubin",
         "-Xptxas=-v", f"-I{CSRC}", f"{CSRC}/cuda/nm24_linear.cu", "-o", str(cubin)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return cubin, done.stderr


def test_registers_hold_everything(compiled: tuple[Path, str]) -> None:
    _, log = compiled
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", log)
    assert stacks == [("0", "0", "0")] * 8, log
    # A name ends in the tiles of tokens, row warps and K warps; 8 warps share 65536 registers.
    used = re.findall(r"nm24_linearI\w+?Li(\d)ELi\dELi\d.*?Used (\d+) registers", log, re.DOTALL)
    assert len(used) == 8
    for tiles, registers in used:
        resident = 2 if int(tiles) <= 2 else 1
        assert int(registers) * 256 * resident <= 65536, (tiles, registers)


def test_code_has_the_instructions(compiled: tuple[Path, str]) -> None:
    tool = disassembler()
    if tool is None:
        pytest.skip("no cuobjdump, the toolkit's or Triton's; it would look for sparse MMAs")
    code = subprocess.run(
        [tool, "-sass", str(compiled[0])], capture_output=True, text=True, check=True
    ).stdout
    kernels = code.split("Function :")[1:]
    assert len(kernels) == 8
    for kernel in kernels:
        name = kernel.split()[0]
        element = r"\.BF16" if "bfloat16" in name else ""
        assert re.search(rf"HMMA\.SP\.16832\.F32{element} ", kernel), name
        assert not re.search(r"HMMA\.1\d+", kernel), "a dense MMA"
        assert re.search(r"LDG\.E\.NA\.128\.CONSTANT", kernel), "16 bytes past L1"
        assert "LDSM.16.M88.4" in kernel and "LDGSTS" in kernel
        assert not re.search(r"\b(LDL|STL)\b", kernel), "local memory"
        assert not re.search(r"(RED|ATOMG?)\S*\.F(16|32|64)", kernel), "a float atomic"

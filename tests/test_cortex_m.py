"""Exported models on Cortex-M under qemu: the numbers of this machine, and how large their code is.

`make cortex-m` runs it, and shows the sizes.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_c import WARNINGS, amalgamated, bound_of, call, compiled, run_here
from networks import prune, simple_cnn
from torch import Tensor, nn

from sparseinfer.export.engine import Engine

pytestmark = pytest.mark.cross

BOARD = Path(__file__).resolve().parent.parent / "examples" / "microcontroller"
PREFIX = "arm-none-eabi-"
MOST_CODE = 16_000
"""Bytes of the plain C of a multilayer perceptron of int8, without its weights."""

PROCESSORS = {
    "cortex-m3": ("mps2-an385", ["-mcpu=cortex-m3", "-mfloat-abi=soft"]),
    "cortex-m4": ("mps2-an386", ["-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]),
}
"""qemu's machine and the compiler's flags. The M3 has no floating-point unit."""


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on PATH; try apt-get install {package} (Debian, Ubuntu)")
    return found


@dataclass(frozen=True)
class Exported:
    """A model, an input, and the folder with its plain C."""

    engine: Engine
    x: Tensor
    folder: Path
    exact: bool


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers).eval(), torch.randn(1, 784)


def cnn() -> tuple[nn.Module, Tensor]:
    return simple_cnn(), torch.randn(1, 3, 32, 32)


MODELS = {
    "int8 MLP": (mlp, "int8"), "int8 CNN": (cnn, "int8"), "float32 CNN": (cnn, "float32"),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    make, weights = MODELS[request.param]
    torch.manual_seed(0)
    model, x = make()
    prune(model, 0.9)
    engine = compiled(model, x, weights)
    folder = amalgamated(engine, tmp_path_factory.mktemp("model") / "net")
    return Exported(engine, x, folder, weights == "int8")


def built(folder: Path, processor: str, level: str, out: Path) -> Path:
    """The program of the example, with a model."""
    gcc = tool(f"{PREFIX}gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    call(
        gcc, *WARNINGS, level, *PROCESSORS[processor][1], "-ffunction-sections", f"-I{folder}",
        BOARD / "main.c", BOARD / "board.c", folder / "sparseinfer.c", folder / "net.S",
        "-nostartfiles", f"-T{BOARD / 'mps2.ld'}", "-Wl,--gc-sections", "-lm", "-o", out,
        cwd=folder,
    )  # fmt: skip
    return out


def run_on_board(program: Path, processor: str, x: Tensor) -> tuple[np.ndarray, str]:
    """What the program writes and prints under qemu."""
    qemu = tool("qemu-system-arm", "qemu-system-arm")
    (program.parent / "input.bin").write_bytes(x.numpy().tobytes())
    words = [qemu, "-M", PROCESSORS[processor][0], "-nographic", "-semihosting", "-kernel"]
    done = subprocess.run(
        [*words, str(program)], cwd=program.parent, capture_output=True, text=True, timeout=120
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    return np.fromfile(program.parent / "output.bin", np.float32), told


def sizes(file: Path) -> tuple[int, int]:
    """Bytes of code and constants, and of variables that begin with a value."""
    table = call(tool(f"{PREFIX}size", "binutils-arm-none-eabi"), file, cwd=file.parent)
    text, data = table.decode().splitlines()[1].split()[:2]
    return int(text), int(data)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_numbers_are_those_of_this_machine(
    exported: Exported, processor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    program = built(exported.folder, processor, "-O2", tmp_path / "app.elf")
    found, told = run_on_board(program, processor, exported.x)
    expected = exported.engine(exported.x).numpy().ravel()
    if exported.exact:
        assert np.array_equal(found, expected)
        assert np.array_equal(found, run_here(exported.folder, exported.x))
    else:
        assert np.abs(found - expected).max() <= bound_of(exported.engine)
    assert f"class {expected.argmax()}\n" in told
    weights = (exported.folder / "net.bin").stat().st_size
    text, data = sizes(program)
    with capsys.disabled():
        print(f"\n{processor}: {weights:,} bytes of weights, {text + data - weights:,} of the rest")


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("level", ["-Os", "-O2"])
def test_the_code_of_an_mlp_is_small(
    processor: str, level: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    gcc = tool(f"{PREFIX}gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    torch.manual_seed(0)
    model, x = mlp()
    prune(model, 0.9)
    folder = amalgamated(compiled(model, x, "int8"), tmp_path / "net")
    flags = PROCESSORS[processor][1]
    call(gcc, level, *flags, "-c", "sparseinfer.c", "-o", "net.o", cwd=folder)
    text, data = sizes(folder / "net.o")
    version = call(gcc, "--version", cwd=folder).decode().splitlines()[0]
    with capsys.disabled():
        print(f"\n{processor} {level}: {text + data:,} bytes of code for an int8 MLP ({version})")
    assert text + data <= MOST_CODE


def test_a_missing_input_is_told(exported: Exported, tmp_path: Path):
    program = built(exported.folder, "cortex-m4", "-O2", tmp_path / "app.elf")
    with pytest.raises(AssertionError, match=r"expected input\.bin"):
        qemu = tool("qemu-system-arm", "qemu-system-arm")
        call(
            qemu, "-M", "mps2-an386", "-nographic", "-semihosting", "-kernel", program,
            cwd=tmp_path,
        )  # fmt: skip

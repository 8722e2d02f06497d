"""Golden inputs and outputs in files of engines: what passes, and what is told from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import mobilenet_v2, prune, simple_cnn
from torch import Tensor, nn

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.golden import add_golden


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def golden(model: nn.Module, example: Any, **options: Any) -> Engine:
    return compile(model, example, baselines=(), golden=True, **options)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(simple_cnn, (2, 3, 32, 32)), (lambda: mobilenet_v2(0.35, 2), (1, 3, 32, 32))],
)
def test_a_saved_engine_passes(model: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    made = model()
    prune(made, 0.8)
    engine = golden(made, torch.randn(shape))
    assert 0 <= engine.selftest() < 1
    engine.save(tmp_path / "model.sinf")
    for threads in (1, 2):
        loaded = load_engine(tmp_path / "model.sinf", threads=threads)
        assert 0 <= loaded.selftest() < 1
        x = torch.randn(shape)
        assert torch.equal(loaded(x), engine(x))


class Several(nn.Module):
    """Inputs and outputs that fill no multiple of 64 bytes, one of them an output twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor, scale: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        z = self.linear(x) + y
        return z, torch.relu(z), z


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    engine = golden(Several().eval(), {"y": torch.randn(2, 3), "x": torch.randn(2, 5)})
    assert engine.selftest() < 1
    facts = engine.facts()
    assert facts.bytes["golden inputs and outputs"] == 64 + 2 * 64 + 3 * 64
    assert sum(facts.bytes.values()) == facts.file_bytes


def test_a_wrong_output_is_told() -> None:
    linear = nn.Linear(4, 2).eval()
    x = torch.randn(3, 4)
    file = compile(linear, x, baselines=())._file
    with torch.no_grad():
        y = linear(x)
    for wrong in (y + 1, y * float("nan"), torch.full_like(y, float("inf"))):
        engine = Engine(add_golden(file, [x], [wrong], [1e-4]), 1)
        with pytest.raises(RuntimeError, match=r"output 0 .* differs from the file's by"):
            engine.selftest()
    assert Engine(add_golden(file, [x], [y], [1e-4]), 1).selftest() < 0.1
    assert Engine(add_golden(file, [x], [y + 1], [2.0]), 1).selftest() == pytest.approx(0.5, 0.01)


def test_what_numbers_are_none_in_both() -> None:
    add = compile(Several().eval(), (torch.zeros(1, 5), torch.zeros(1, 3)), baselines=())
    nan = torch.full((1, 3), float("nan"))
    file = add_golden(add._file, [torch.zeros(1, 5), nan], [nan, nan, nan], [0.0] * 3)
    # max(0, NaN) is not the same on every instruction set.
    with_relu = Engine(file, 1)
    try:
        assert with_relu.selftest() == 0.0
    except RuntimeError as error:
        assert "output 1" in str(error)


def test_what_has_no_golden_outputs_says_so() -> None:
    engine = compile(nn.Linear(4, 2).eval(), torch.zeros(1, 4), baselines=())
    with pytest.raises(RuntimeError, match="expected a model file with golden inputs and outputs"):
        engine.selftest()
    with pytest.raises(ValueError, match="expected check=True with golden=True"):
        golden(nn.Linear(4, 2).eval(), torch.zeros(1, 4), check=False)


@pytest.mark.parametrize(
    ("inputs", "outputs", "bounds", "text"),
    [
        ([torch.zeros(3, 4)], [torch.zeros(3, 2)], [-1.0], "finite bound of golden output 0"),
        ([torch.zeros(3, 4)], [torch.zeros(3, 2)], [float("nan")], "finite bound"),
        ([torch.zeros(9, 4)], [torch.zeros(3, 2)], [1.0], "golden bytes of its inputs and outputs"),
        ([], [torch.zeros(3, 2)], [1.0], "golden bytes of its inputs and outputs"),
    ],
)
def test_what_is_not_the_models_is_refused(
    inputs: Any, outputs: Any, bounds: Any, text: str
) -> None:
    engine = compile(nn.Linear(4, 2).eval(), torch.zeros(3, 4), baselines=())
    with pytest.raises(ValueError, match=text):
        add_golden(engine._file, inputs, outputs, bounds)


def test_damage_of_the_golden_section_is_noticed(tmp_path: Path) -> None:
    engine = golden(nn.Linear(4, 2).eval(), torch.randn(3, 4))
    whole = engine._file.numpy().tobytes()
    path = tmp_path / "damaged.sinf"
    for at in range(len(whole) - 192, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="corrupt"):
            load_engine(path)
    path.write_bytes(whole[:-64])
    with pytest.raises(ValueError, match="corrupt"):
        load_engine(path)

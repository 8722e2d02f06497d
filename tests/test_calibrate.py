"""Calibration runs a model once on sample data, finds its layers' scales and leaves it alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparseinfer.convert.calibrate import SAMPLE_ELEMENTS, calibrate, watch_inputs
from sparseinfer.quantize import OBSERVERS, scale_of_range

IMAGES = torch.linspace(-1, 1, 6 * 64).reshape(6, 1, 8, 8)


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(),
        nn.Linear(4 * 6 * 6, 10),
    )  # fmt: skip


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.fc(input=x * scale)


@pytest.mark.parametrize("method", OBSERVERS)
def test_scales_are_those_of_the_inputs(method: str) -> None:
    model = _net()
    found = calibrate(model, IMAGES, method=method)
    assert set(found) == {"0", "5"} and found.batches == 1 and found.method == method
    assert found["5"].zero_point == 0  # after a ReLU
    assert found["0"].scale == pytest.approx(2 / 255, rel=0.1)
    if method == "minmax":
        assert found["0"] == scale_of_range(-1.0, 1.0)


def test_the_model_is_as_before() -> None:
    model = _net().train()
    model[4].eval()
    state, flags = copy.deepcopy(model.state_dict()), [own.training for own in model.modules()]
    calibrate(model, [IMAGES, IMAGES * 2])
    assert [own.training for own in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(own._forward_pre_hooks for own in model.modules())


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(IMAGES, torch.zeros(6)), batch_size=2),
        DataLoader(IMAGES, batch_size=2),
        [IMAGES[:2], IMAGES[2:4], IMAGES[4:]],
        ((IMAGES[i : i + 2],) for i in (0, 2, 4)),
    ],
    ids=["labelled", "loader", "list", "generator of arguments"],
)
def test_forms_of_data(data: Any) -> None:
    model = _net()
    found = calibrate(model, data, method="minmax")
    assert found.batches == 3 and found["0"] == calibrate(model, IMAGES, method="minmax")["0"]


def test_keywords_reach_the_model() -> None:
    model, x = _Named(), torch.tensor([[-1.0, 0.0, 0.5, 1.0]])
    assert calibrate(model, (x, 2.0), method="minmax")["fc"] == scale_of_range(-2.0, 2.0)
    assert calibrate(model, {"x": x, "scale": 4.0}, method="minmax")["fc"] == scale_of_range(-4, 4)


def test_projections_of_an_attention_have_scales() -> None:
    model, x = nn.MultiheadAttention(8, 2), torch.rand(3, 1, 8)
    found = calibrate(model, (x, x, x))
    assert (
        set(found) == {"in_proj"} and "that reaches the layer" in found.inputs["out_proj"].missing
    )


def test_layers_that_no_data_reaches() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    found = calibrate(model, torch.rand(2, 4))
    assert set(found) == {"0"} and "that reaches the layer" in found.inputs["unused"].missing
    found = calibrate(model, torch.zeros(2, 4))
    assert not found and "0" not in found and "a range of 0 to 0" in found.inputs["0"].missing


def test_samples_are_bounded() -> None:
    layer = nn.Linear(1024, 1)
    found, _ = watch_inputs(layer, {"": layer}, torch.rand(1000, 1024))
    sample = found[""].sample
    assert sample is not None and sample.shape == (SAMPLE_ELEMENTS // 1024, 1024)


@pytest.mark.parametrize(
    ("data", "error", "expected"),
    [
        (torch.rand(2, 1, 9, 9), ValueError, r"got batch 0 of \[2, 1, 9, 9\], on which it raised"),
        ([IMAGES, torch.rand(2, 3, 8, 8)], ValueError, r"got batch 1 of \[2, 3, 8, 8\]"),
        (torch.rand(0, 1, 8, 8), ValueError, r"with elements, got batch 0 of \[0, 1, 8, 8\]"),
        ((), ValueError, "got batch 0 of no tensor"),
        ([], ValueError, "got no batch"),
        (iter([]), ValueError, "got no batch"),
        (IMAGES * float("nan"), ValueError, "got 384 NaN or Inf .* the input of 0 in batch 0"),
        ([IMAGES, IMAGES / 0], ValueError, "in batch 1 of the calibration data"),
        ([(IMAGES, torch.zeros(6))], ValueError, r"\(x,\) for x, _ in loader"),
        (IMAGES.long(), ValueError, r"got torch\.int64"),
        (3, TypeError, "got int; try a DataLoader"),
        ("images", TypeError, "got str"),
        ([3], TypeError, "got int"),
    ],
)
def test_data_that_cannot_calibrate(data: Any, error: type[Exception], expected: str) -> None:
    model = _net()
    with pytest.raises(error, match=expected):
        calibrate(model, data)
    assert not any(own._forward_pre_hooks for own in model.modules())


def test_calls_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got dict"):
        calibrate({}, IMAGES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a method of"):
        calibrate(_net(), IMAGES, method="entropy")

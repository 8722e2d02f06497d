"""Networks that torch exports to ONNX, by both exporters, as engines: against the model itself."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_convolutional_networks as convolutional
import test_further_networks as further
import test_transformer_networks as transformers
import torch
from onnx_models import ops, quick
from oracle import EPS
from torch import Tensor, nn

from sparseinfer.export.engine import load_engine

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

Made = tuple[nn.Module, dict[str, Tensor]]


class FirstOutput(nn.Module):
    """A model of transformers, called by position, that gives one tensor."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Any:
        found = self.model(**dict(zip(self.names, tensors, strict=True)))
        return found.logits if "logits" in found else found.last_hidden_state


def of_transformers(make: Callable[[], Made]) -> Made:
    model, inputs = make()
    return FirstOutput(model, list(inputs)).eval(), inputs


def of_images(make: Callable[[], nn.Module]) -> Made:
    return make().eval(), {"x": torch.randn(1, 3, 64, 64)}


NETWORKS: dict[str, Callable[[], Made]] = {
    **{
        make.__name__: (lambda make=make: of_transformers(make))
        for make in (*transformers.MODELS, *further.MODELS)
    },
    **{
        name: (lambda name=name: of_images(convolutional.NETWORKS[name]))
        for name in ("detector", "mobilenet_v3", "efficientnet_blocks")
    },
}
QUICK = {("bert", False), ("mobilenet_v3", False)}
CASES = [
    pytest.param(name, dynamo, marks=() if (name, dynamo) in QUICK else pytest.mark.slow)
    for name in NETWORKS
    for dynamo in (False, True)
    # The exporter itself cannot follow these two.
    if not dynamo or name not in ("t5", "swin")
]


def exported(model: nn.Module, inputs: dict[str, Tensor], path: Path, dynamo: bool) -> Path:
    torch.onnx.export(
        model, tuple(inputs.values()), path, dynamo=dynamo, verbose=False, input_names=list(inputs)
    )
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dynamo"), CASES)
def test_networks(name: str, dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    path = exported(model, inputs, tmp_path / "m.onnx", dynamo)
    engine = quick(path, inputs, golden=True)
    assert "ONNX Runtime" in engine.report().error and engine.selftest() <= 1
    y, exact = engine(**inputs), _exact(model, inputs)
    with torch.no_grad():
        own = model(*inputs.values())
    allowed = 8 * (own.double() - exact).abs().max() + 64 * EPS * exact.abs().max()
    assert (y.double() - exact).abs().max() <= allowed
    # What the model is compiled to, and no operator more.
    found, known = (Counter(ops(each)) for each in (engine, quick(model, tuple(inputs.values()))))
    assert found["attention"] == known["attention"]
    assert found.total() <= known.total() + 2, f"{found} instead of {known}"
    engine.save(tmp_path / "m.sinf")
    assert torch.equal(load_engine(tmp_path / "m.sinf")(**inputs), y)


def _exact(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    wide = [x.double() if x.is_floating_point() else x for x in inputs.values()]
    with torch.no_grad():
        y: Tensor = copy.deepcopy(model).double()(*wide)
    return y

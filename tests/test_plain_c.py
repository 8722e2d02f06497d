"""Plain C beside layers: what goes over dimensions, paddings, and weights that become others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_c import SANITIZED, amalgamated, bound_of, check_outputs, compiled, pruned, run_here
from torch import Tensor, nn

from sparseinfer.export.aligned import aligned_size, new_memory
from sparseinfer.export.c.dimensions import DIMENSIONS
from sparseinfer.export.c.folder import files_of
from sparseinfer.export.c.lacks import NotInC
from sparseinfer.export.c.records import read_packed, read_records
from sparseinfer.export.c.repack import plain_packed
from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine
from sparseinfer.export.file import HEADER, KINDS, NODE, OPERATORS, TENSOR
from sparseinfer.formats.packed import pack
from sparseinfer.native import seal_model


class Dimensions(nn.Module):
    """What goes over the dimensions of tensors, of every kind that an operator has."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.norm, self.plain = nn.LayerNorm(9), nn.LayerNorm(9, elementwise_affine=False)
        self.rms = nn.RMSNorm(9)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        functional, interpolate = nn.functional, nn.functional.interpolate
        # Each row of a few columns, which others are broadcast along.
        narrow, flat = x[:, :, :, :1].abs() + 0.5, x[:, :, 2:9:3]
        return [
            x * self.scale, self.scale - x, x / narrow, torch.minimum(x, narrow),
            torch.maximum(x[:, :1], x), torch.pow(narrow, x), torch.relu(x + narrow),
            functional.leaky_relu(x), functional.elu(x), x.clamp(-0.5, 0.7),
            functional.softplus(x), x.abs(), torch.exp(x), torch.log(narrow), torch.sqrt(narrow),
            torch.rsqrt(narrow), torch.erf(x), torch.sin(x), torch.cos(x), torch.floor(x),
            torch.ceil(x), torch.round(x),
            x.mean((1, 3)), x.sum(2, keepdim=True), x.amax((1, 2, 3)), x.amin(1), x.mean(3),
            x.permute(0, 3, 1, 2), x.transpose(1, 2), flat, x[:, 1:4],
            self.norm(x), self.plain(x + flat[:, :, :1]), self.rms(x),
            interpolate(x, (5, 20)), interpolate(x, (20, 4), mode="nearest-exact"),
            interpolate(x, scale_factor=2.0, mode="bilinear"),
            interpolate(x, (7, 13), mode="bilinear", align_corners=True),
        ]  # fmt: skip


def test_every_kind_of_what_goes_over_dimensions(tmp_path: Path):
    torch.manual_seed(0)
    model, x = Dimensions().eval(), torch.randn(2, 6, 10, 9)
    engine = compiled(model, x, "float32")
    nodes = read_records(bytes(engine.file.numpy())).nodes
    assert set(DIMENSIONS) <= {node.op for node in nodes}
    met = {(node.op, node.kind) for node in nodes if node.kind}
    # Those that are activations elsewhere are not unary; sums of equal shapes are not binary.
    lacking = {("unary", "hardswish"), ("unary", "hardsigmoid")}
    assert {(op, kind) for op, kinds in KINDS.items() for kind in kinds} - met <= lacking, met
    found = run_here(amalgamated(engine, tmp_path), x, options=SANITIZED)
    for which, y in enumerate(engine(x)):
        own, found = found[: y.numel()], found[y.numel() :]
        assert np.abs(own - y.numpy().ravel()).max() <= bound_of(engine, which), which
    assert len(found) == 0


def padded_by(engine: Engine, mode: int) -> Engine:
    """The engine with other paddings of its convolutions, whose golden outputs it keeps."""
    file = engine.file.clone()
    tensors, nodes = HEADER.unpack_from(file.numpy())[4:6]
    first = aligned_size(HEADER.size + TENSOR.size * tensors)
    for at in range(first, first + NODE.size * nodes, NODE.size):
        row = list(NODE.unpack_from(file.numpy(), at))
        if row[0] == OPERATORS["conv"]:
            NODE.pack_into(file.numpy(), at, *row[:-2], mode, 0)
    memory = new_memory(len(file))
    memory[:] = file
    seal_model(memory.data_ptr(), len(memory))
    return Engine(memory, 1)


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("mode", [1, 2, 3], ids=["reflect", "replicate", "circular"])
def test_paddings(tmp_path: Path, mode: int, weights: str):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), (2, 1), (1, 2)), nn.ReLU(), nn.Conv2d(8, 6, 3, 1, 2, 2, groups=2),
        nn.Flatten(2), nn.Conv1d(6, 4, 5, padding=2),
    )  # fmt: skip
    model, x = pruned(model, 2, 3, 9, 8)
    zeros = compiled(model, x, weights)
    engine = padded_by(zeros, mode)
    assert not torch.allclose(engine(x), zeros(x))
    found = run_here(amalgamated(engine, tmp_path), x, options=SANITIZED)
    check_outputs(engine, x, found, weights == "int8")


@pytest.mark.parametrize(("weights", "columns"), [("bfloat16", 50), ("float32", 70000)])
def test_weights_that_become_others(tmp_path: Path, weights: str, columns: int):
    """bfloat16 values become float32; of more columns than a panel has, rows of them."""
    torch.manual_seed(0)
    model, x = pruned(nn.Linear(columns, 9), 3, columns)
    engine = compile(model, x, weights=weights, baselines=(), golden=True)
    (weight,) = (own for own in engine.facts().tensors if own.format)
    assert (weight.format, weight.dtype) == ("panel" if columns < 70000 else "csr", weights)
    found = run_here(amalgamated(engine, tmp_path), x, options=SANITIZED)
    check_outputs(engine, x, found, False)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("format", "params", "dtype"),
    [
        ("csr", {}, torch.float32),
        ("nm", {"n": 2, "m": 4}, torch.float16),
        ("nm", {"n": 2, "m": 4}, torch.bfloat16),
        ("bsr", {"block": 16}, torch.float32),
        ("bsr", {"block": 16}, torch.bfloat16),
    ],
)
def test_formats_become_panels(format: str, params: dict[str, Any], dtype: Any, groups: int):
    torch.manual_seed(0)
    weight = torch.randn(32, 32, 1, 1).to(dtype)
    weight[:, 2::4] = weight[:, 3::4] = 0
    packed = plain_packed(bytes(pack(weight, format, groups, **params).numpy()))
    assert (packed.format, packed.value_type, packed.groups) == ("panel", "float32", groups)
    panel = read_packed(bytes(pack(weight.float(), "panel", groups).numpy()))
    assert packed == panel and packed.sections["value"]


def test_pairs_of_bfloat16_are_refused():
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)).eval()
    engine = compile(
        model, torch.randn(2, 40), weights="bfloat16", activations="bfloat16", baselines=()
    )
    with pytest.raises(NotInC, match="pairs of bfloat16"):
        files_of(engine, "amalgamation", "net")


class SqueezeExcitation(nn.Module):
    """A block of MobileNetV3, whose channels are scaled by what is seen of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 5, 1, 2, groups=16)
        self.less, self.more = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        functional = nn.functional
        x = functional.hardswish(self.deep(functional.hardswish(self.stem(x))))
        scale = torch.relu(self.less(functional.adaptive_avg_pool2d(x, 1)))
        x = x * functional.hardsigmoid(self.more(scale))
        return self.last(x.mean((2, 3)))


class KeywordSpotter(nn.Sequential):
    """A small DS-CNN: depthwise separable convolutions over 49 frames of 10 coefficients."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, 24, (10, 4), 2, (5, 1)), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU()]
            layers += [nn.Conv2d(24, 24, 1), nn.ReLU()]
        super().__init__(
            *layers, nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(24, 12), nn.Softmax(1)
        )


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize(
    ("make", "shape"), [(SqueezeExcitation, (2, 3, 17, 17)), (KeywordSpotter, (1, 1, 49, 10))]
)
def test_networks_of_small_boards(
    tmp_path: Path, make: type[nn.Module], shape: tuple[int, ...], weights: str
):
    torch.manual_seed(0)
    model, x = pruned(make(), *shape)
    engine = compiled(model, x, weights)
    assert (weights == "int8") == ("uint8" in {own.dtype for own in engine.facts().tensors})
    check_outputs(engine, x, run_here(amalgamated(engine, tmp_path), x, options=SANITIZED), False)

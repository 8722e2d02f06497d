"""Operators that convolutional networks need besides convolutions, and networks of them."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import some_slow
from oracle import EPS
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import load_engine

Forward = Callable[[Tensor], Any]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Of(nn.Module):
    """A module of one function, with parameters for it."""

    def __init__(self, forward: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.call = forward
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Any:
        return self.call(x, **dict(self.named_parameters()))


def check(model: nn.Module, x: Tensor, slack: float = 4.0) -> list[str]:
    """The engine's error against float64 is the model's own, to a small factor; its operators."""
    engine = compile(model.eval(), (x,), baselines=(), threads=2)
    with torch.no_grad():
        exact, dense = copy.deepcopy(model).double()(x.double()), model(x)
    parts = [y if isinstance(y, tuple | list) else [y] for y in (engine(x), dense, exact)]
    for got, own, true in zip(*parts, strict=True):
        assert got.shape == own.shape
        error = (got.double() - true).abs().nan_to_num(0)
        allowed = slack * (own.double() - true).abs().nan_to_num(0).max()
        allowed = allowed + 32 * EPS * true.abs().nan_to_num(0, 0, 0).max()
        assert error.max() <= allowed, (error.max(), allowed)
        assert torch.equal(got.isnan(), own.isnan())
    return [node["op"] for node in engine.report().nodes]


IMAGE = (2, 6, 7, 9)
BINARY: dict[str, Forward] = {
    "number": lambda x: (x * 0.5, x + 1, 3 - x, x / 7, 2 / (x.abs() + 1), x - 2),
    "alpha": lambda x: (torch.add(x, x, alpha=2), torch.sub(x, 1.5, alpha=3)),
    "channels": lambda x: x * x.mean((2, 3), keepdim=True),
    "rows": lambda x: x + x.amax(3, keepdim=True) - x.amin((1, 2), keepdim=True),
    "outer": lambda x: x[:, :, :1] * x[:, :, :, :1],
    "last": lambda x: x / (x[0, 0, 0].abs() + 1),
    "power": lambda x: (x**2, x**3, (x.abs() + 0.1) ** -0.7, x.abs() ** 0.5, 2.0**x),
    "extremes": lambda x: (torch.minimum(x, -x), torch.maximum(x, x[:1])),
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str) -> None:
    check(Of(BINARY[name]), torch.randn(IMAGE))


def test_binary_of_parameters() -> None:
    scale, shift = torch.randn(6, 1, 1), torch.randn(9)
    ops = check(
        Of(lambda x, scale, shift: scale * x + shift, scale=scale, shift=shift), torch.randn(IMAGE)
    )
    assert ops == ["binary", "binary"]


def test_extremes_keep_nan() -> None:
    model = Of(lambda x: (torch.minimum(x, x[1]), torch.maximum(x[1], x), x.amax(1)))
    x = torch.randn(3, 37)
    engine = compile(model.eval(), (x,), baselines=())
    x[0, 5] = x[2, 36] = x[1, 7] = torch.nan
    for got, known in zip(engine(x), model(x), strict=True):
        assert torch.equal(got.isnan(), known.isnan())
        assert torch.equal(got.nan_to_num(), known.nan_to_num())


UNARY: dict[str, Forward] = {
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "leaky_relu": F.leaky_relu,
    "elu": F.elu, "elu_alpha": lambda x: F.elu(x, 0.3), "selu": F.selu,
    "clamp": lambda x: x.clamp(-0.4, 0.9), "clamp_min": lambda x: x.clamp(min=0.2),
    "hardtanh": F.hardtanh, "softplus": lambda x: (F.softplus(x), F.softplus(x, 3, 2)),
    "mish": F.mish, "exp": torch.exp, "abs": torch.abs, "neg": lambda x: -x,
    "sqrt": lambda x: x.abs().sqrt(), "rsqrt": lambda x: (x * x + 1).rsqrt(),
    "log": lambda x: (x.abs() + 0.1).log(), "erf": torch.erf, "sin": torch.sin, "cos": torch.cos,
    "round": lambda x: (x.floor(), x.ceil(), x.round()),
    "log_softmax": lambda x: F.log_softmax(20 * x, 1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2], dtype=x.dtype)),
}  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", [(3, 37), IMAGE])
def test_unary(name: str, shape: tuple[int, ...]) -> None:
    check(Of(UNARY[name]), 2 * torch.randn(shape))


def test_prelu_of_channels() -> None:
    check(nn.PReLU(6, 0.3), torch.randn(IMAGE))


SLICES: dict[str, Forward] = {
    "slice": lambda x: (x[:, 1:4], x[:, :, ::2, 1:8:3], x[..., -3:]),
    "select": lambda x: x[:, 2] + x[:, -1],
    "chunk": lambda x: x.chunk(2, 1),
    "split": lambda x: x.split([1, 2, 3], 1) + x.split(4, 3),
    "unbind": lambda x: x.unbind(2),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SLICES)
def test_slices(name: str) -> None:
    check(Of(SLICES[name]), torch.randn(IMAGE))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bilinear aligned"])
@pytest.mark.parametrize("to", [2, 0.5, 1.7, (14, 5), (1, 1), (7, 20)])
def test_resize(mode: str, to: Any) -> None:
    mode, _, aligned = mode.partition(" ")
    options = {"size" if isinstance(to, tuple) else "scale_factor": to, "mode": mode}
    if mode == "bilinear":
        options["align_corners"] = bool(aligned)
    ops = check(Of(lambda x: F.interpolate(x, **options)), torch.randn(IMAGE))
    assert ops == ["resize"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("axes", [(0,), (1,), (3,), (0, 2), (1, 3), (1, 2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_reduce(axes: tuple[int, ...], keepdim: bool) -> None:
    check(Of(lambda x: tuple(
        f(x, dim=axes, keepdim=keepdim) for f in (torch.mean, torch.sum, torch.amax, torch.amin)
    )), torch.randn(IMAGE))  # fmt: skip


@pytest.mark.parametrize("size", [(2, 4), (5, 1), (7, 4)])
def test_uneven_pooling(size: tuple[int, int]) -> None:
    check(nn.AdaptiveAvgPool2d(size), torch.randn(IMAGE))


class SimpleCNN(nn.Module):
    """As articles write it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.last = nn.Linear(12 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.leaky_relu(self.first(x) * 0.5), 2)
        x = F.adaptive_avg_pool2d(F.elu(self.second(x)), 3)
        return F.log_softmax(self.last(x.view(x.size(0), -1)), dim=1)


def _conv(c: int, out: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(c, out, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.SiLU())


class C2f(nn.Module):
    def __init__(self, c: int, out: int) -> None:
        super().__init__()
        self.half = out // 2
        self.enter, self.leave = _conv(c, out), _conv(3 * self.half, out)
        self.inner = nn.Sequential(_conv(self.half, self.half, 3), _conv(self.half, self.half, 3))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        parts.append(parts[-1] + self.inner(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class SPPF(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.enter, self.leave = _conv(c, c // 2), _conv(2 * c, c)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Detector(nn.Module):
    """A small one of the kind of YOLOv8: two scales, upsampled and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 8, 3, 2), _conv(8, 16, 3, 2), C2f(16, 16))
        self.deep = nn.Sequential(_conv(16, 32, 3, 2), C2f(32, 32), SPPF(32))
        self.join, self.heads = (
            C2f(48, 16),
            nn.ModuleList([nn.Conv2d(16, 9, 1), nn.Conv2d(32, 9, 1)]),
        )
        self.grow = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        deep = self.deep(fine)
        fine = self.join(torch.cat([self.grow(deep), fine], 1))
        found = [head(y).flatten(2) for head, y in zip(self.heads, (fine, deep), strict=True)]
        boxes, classes = torch.cat(found, 2).split([4, 5], 1)
        return torch.cat([boxes * 8, classes.sigmoid()], 1)


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(c, max(8, c // 4), 1), nn.Conv2d(max(8, c // 4), c, 1)
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.excite(F.relu(self.squeeze(self.pool(x)))))


class InvertedResidual(nn.Module):
    def __init__(self, c: int, inner: int, out: int, size: int, stride: int, act: Any) -> None:
        super().__init__()
        gate = nn.Hardsigmoid if act is nn.Hardswish else nn.Sigmoid
        self.body = nn.Sequential(
            nn.Conv2d(c, inner, 1, bias=False), nn.BatchNorm2d(inner), act(),
            nn.Conv2d(inner, inner, size, stride, size // 2, groups=inner, bias=False),
            nn.BatchNorm2d(inner), act(), SqueezeExcite(inner, gate),
            nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.adds = stride == 1 and c == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


MOBILENET_V3 = (
    (16, 16, 16, 3, 2), (16, 96, 40, 5, 2), (40, 240, 40, 5, 1), (40, 120, 48, 5, 1),
    (48, 144, 48, 5, 1), (48, 288, 96, 5, 2), (96, 576, 96, 5, 1),
)  # fmt: skip
"""The squeeze-and-excite blocks of MobileNetV3-Small: channels, expanded, out, kernel, stride."""


def mobilenet_v3(blocks: int, act: type[nn.Module] = nn.Hardswish) -> nn.Module:
    """MobileNetV3-Small, cut after so many blocks; with SiLU the blocks are EfficientNet's."""
    chosen = MOBILENET_V3[:blocks]
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), act()]
    body = [InvertedResidual(*block, act) for block in chosen]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(chosen[-1][2], 64), act()]
    return nn.Sequential(*stem, *body, *head, nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "detector": Detector,
    "mobilenet_v3": lambda: mobilenet_v3(3),
    "efficientnet_blocks": lambda: mobilenet_v3(3, nn.SiLU),
}


@pytest.mark.parametrize("name", some_slow(NETWORKS, "mobilenet_v3"))
def test_network(name: str, tmp_path: Path) -> None:
    _end_to_end(NETWORKS[name]().eval(), torch.randn(1, 3, 64, 64), tmp_path)


@pytest.mark.slow
def test_mobilenet_v3(tmp_path: Path) -> None:
    _end_to_end(mobilenet_v3(7).eval(), torch.randn(1, 3, 224, 224), tmp_path)


class Logits(nn.Module):
    """A model of transformers that gives a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


@pytest.mark.slow
def test_efficientnet_b0(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, num_labels=10
    )
    model = Logits(transformers.EfficientNetForImageClassification(config)).eval()
    _end_to_end(model, torch.randn(1, 3, 224, 224), tmp_path)


def _end_to_end(model: nn.Module, x: Tensor, folder: Path) -> None:
    """Compiled, held against float64, saved, loaded in a fresh process and run."""
    engine = compile(model, (x,), baselines=(), threads=1)
    with torch.no_grad():
        exact, dense = copy.deepcopy(model).double()(x.double()), model(x)
    y = engine(x)
    allowed = 4 * (dense.double() - exact).abs().max() + 32 * EPS * exact.abs().max()
    assert (y.double() - exact).abs().max() <= allowed
    engine.save(folder / "model.sinf")
    torch.save((x, y), folder / "known.pt")
    code = (
        "import sys, torch, sparseinfer\n"
        "x, y = torch.load(sys.argv[2])\n"
        "assert torch.equal(sparseinfer.load_engine(sys.argv[1])(x), y)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, folder / "model.sinf", folder / "known.pt"], check=True
    )
    assert load_engine(folder / "model.sinf").report().nodes


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (50, 50), (5, 3), (7, 9)])
def test_average_pools_that_end_beyond_the_image(kernel: int, stride: int) -> None:
    model, x = nn.AvgPool2d(kernel, stride, ceil_mode=True).eval(), torch.randn(2, 3, 7, 8)
    engine = compile(model, x, baselines=())
    torch.testing.assert_close(engine(x), model(x))

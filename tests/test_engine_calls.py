"""How engines are called: arguments and their defaults, kinds of tensors, outputs, and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.errors import UnsupportedOperators


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def quick(model: nn.Module, example: Any, dynamic: Any = None) -> Engine:
    return compile(model.eval(), example, baselines=(), dynamic=dynamic)


class Doubles(nn.Module):
    def __init__(self, default: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        if default:
            self.forward = self.twice_or_once

    def forward(self, x: Tensor, twice: bool) -> Tensor:
        y = self.linear(x)
        return y + y if twice else y

    def twice_or_once(self, x: Tensor, twice: bool = False) -> Tensor:
        y = self.linear(x)
        return y + y if twice else y


@pytest.mark.parametrize("example", [True, False])
def test_what_a_call_leaves_out_means_the_default(example: bool, tmp_path: Any) -> None:
    model, x = Doubles(default=True).eval(), torch.randn(2, 4)
    engine = quick(model, {"x": x, "twice": example})
    engine.save(tmp_path / "model.sinf")
    for own in (engine, load_engine(tmp_path / "model.sinf")):
        assert torch.allclose(own(x, twice=example), model(x, twice=example))
        if example:
            with pytest.raises(ValueError, match=r"expected twice to be True, .* got False"):
                own(x)
        else:
            assert torch.equal(own(x), own(x, False))


def test_examples_that_leave_out_a_default() -> None:
    model, x = Doubles(default=True).eval(), torch.randn(2, 4)
    engine = quick(model, x)
    assert torch.equal(engine(x), engine(x, twice=False))
    with pytest.raises(ValueError, match="expected twice to be False"):
        engine(x, True)


def test_arguments_without_a_default_are_given() -> None:
    model, x = Doubles(default=False).eval(), torch.randn(2, 4)
    engine = quick(model, (x, True))
    assert torch.allclose(engine(x, True), model(x, True))
    with pytest.raises(TypeError, match="got none for twice"):
        engine(x)


@pytest.mark.parametrize("value", [float("nan"), -0.0, "text", None])
def test_fixed_values_are_themselves(value: Any) -> None:
    class Takes(nn.Module):
        def forward(self, x: Tensor, value: Any) -> Tensor:
            return x + x

    x = torch.randn(2, 3)
    engine = quick(Takes(), (x, value))
    assert torch.equal(engine(x, value), x + x)
    with pytest.raises(ValueError, match="expected value to be"):
        engine(x, 0.0)


def test_parameters_that_are_positional_only() -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor, /, y: Tensor) -> Tensor:
            return x + torch.relu(y)

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    engine = quick(Adds(), (x, y))
    assert torch.equal(engine(x, y), x + y.relu()) and torch.equal(engine(x, y=y), engine(x, y))


class Gives(nn.Module):
    def __init__(self, outputs: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.outputs = nn.Linear(6, 6), outputs

    def forward(self, x: Tensor) -> Any:
        return self.outputs(self.linear, x)


def nones(linear: nn.Module, x: Tensor) -> Any:
    return None, linear(x), {"cache": None, "y": [x, None]}


def same(linear: nn.Module, x: Tensor) -> Any:
    y = linear(x)
    return y, x, y, y.view(-1), torch.relu(y), x


def test_outputs_of_every_kind(tmp_path: Any) -> None:
    x = torch.randn(2, 6)
    quick(Gives(nones), x).save(tmp_path / "model.sinf")
    first, y, named = load_engine(tmp_path / "model.sinf")(x)
    assert first is None and named.cache is None and named.y[1] is None
    assert torch.equal(named.y[0], x) and y.shape == (2, 6)
    model = Gives(same).eval()
    found = quick(model, x)(x)
    for given, expected in zip(found, model(x), strict=True):
        assert torch.allclose(given, expected, atol=1e-6) and given.shape == expected.shape
    assert len({tensor.data_ptr() for tensor in found}) == len(found)


def size(linear: nn.Module, x: Tensor) -> Any:
    return linear(x), x.shape[0]


def text(linear: nn.Module, x: Tensor) -> Any:
    return linear(x), {"kind": "logits"}


def nothing(linear: nn.Module, x: Tensor) -> Any:
    return None


def wide_mean(linear: nn.Module, x: Tensor) -> Any:
    return linear(x)[:, :, None, None].mean((2, 3), dtype=torch.float64)


@pytest.mark.parametrize(
    ("outputs", "shape", "names"),
    [
        (size, (2, 6), r"2 in '': outputs are tensors, or None"),
        (text, (2, 6), r"'logits' in '': outputs are tensors, or None"),
        (nothing, (2, 6), "none of them is a tensor"),
        (wide_mean, (2, 6), "it gives torch.float64, and float32 is taken"),
        (same, (0, 6), r"\[0, 6\] in 'x': tensors have up to 8 dimensions, and elements"),
        (same, (1,) * 8 + (6,), r"in 'x': tensors have up to 8 dimensions"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_a_file_is_listed(outputs: Any, shape: Any, names: str) -> None:
    with pytest.raises(UnsupportedOperators, match=names):
        quick(Gives(outputs), torch.zeros(shape))


def test_long_rows() -> None:
    """Longer than the scratch of depthwise convolutions and of pooling."""
    x = torch.randn(1, 2, 2, 2**17 + 1)
    conv = nn.Conv2d(2, 2, 3, padding=1, groups=2)
    engine = quick(conv, x)
    assert [node["op"] for node in engine.report().nodes] == ["conv"]
    assert torch.allclose(engine(x), conv(x), atol=1e-5)
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((2, 1))):
        with pytest.raises(UnsupportedOperators, match="at most 131072 rows and columns"):
            quick(pool, x)


def test_one_weight_in_groups_of_several_sizes() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 4, 3, 3))

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            whole = F.conv2d(x, self.weight)
            return whole, F.conv2d(y, self.weight, groups=2), F.conv2d(x, self.weight, padding=1)

    model, x, y = Shares().eval(), torch.randn(1, 4, 6, 6), torch.randn(1, 8, 6, 6)
    engine = quick(model, (x, y))
    for given, expected in zip(engine(x, y), model(x, y), strict=True):
        assert torch.allclose(given, expected, atol=1e-5)


def test_inputs_that_say_how_they_are_read() -> None:
    linear, x = nn.Linear(4, 2).eval(), torch.randn(1, 4)
    engine = quick(linear, x)
    negative = torch._neg_view(x)
    assert negative.is_neg() and negative.is_contiguous()
    assert torch.equal(engine(negative), engine(-x))
    assert torch.equal(engine(torch.tensor(2.0).expand(1, 4)), engine(torch.full((1, 4), 2.0)))
    for other in (x.to_sparse(), x.to_sparse_csr(), x.to_mkldnn()):
        with pytest.raises(TypeError, match=r"expected a dense tensor for input, .*to_dense"):
            engine(other)


class Kept(Tensor):
    """A class of tensors of somebody's own."""


def test_tensors_that_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those alone: whatever else a tensor may be is looked at in Python first."""
    conv = nn.Conv2d(3, 4, 3).eval()
    x = torch.randn(2, 3, 5, 5)
    engine = quick(conv, x)
    looked_at = 0
    whole = Engine._taken

    def counted(own: Engine, tensors: Any) -> Any:
        nonlocal looked_at
        looked_at += 1
        return whole(own, tensors)

    monkeypatch.setattr(Engine, "_taken", counted)
    plain = [x, nn.Parameter(x), x.clone().requires_grad_(), torch.cat([x, x])[2:], x.detach()]
    for given in plain:
        y = engine(given)
        assert torch.allclose(y, conv(x), atol=1e-6) and not y.requires_grad
    with torch.inference_mode():
        assert torch.allclose(engine(x.clone()), conv(x), atol=1e-6)
    assert looked_at == 0
    wide = torch.randn(2, 3, 5, 10)
    wide[..., ::2] = x
    others = [
        x.contiguous(memory_format=torch.channels_last), wide[..., ::2], x.as_subclass(Kept),
        torch._neg_view(-x),
    ]  # fmt: skip
    for given in others:
        assert torch.allclose(engine(given), conv(x), atol=1e-6)
    assert torch.allclose(engine(input=x), conv(x), atol=1e-6)
    assert looked_at == len(others) + 1
    varies = quick(conv, x, "batch")
    for batch in (1, 3):
        varies(torch.randn(batch, 3, 5, 5))
    looked_at = 0
    for batch in (1, 2, 3, 1, 1, 3):
        more = torch.randn(batch, 3, 5, 5)
        assert torch.allclose(varies(more), conv(more), atol=1e-6)
    assert looked_at == 0
    refused = [x.double(), x.int(), x.to("meta"), x[:1], x[0], x.tolist(), None, x.to_sparse()]
    for given in refused:
        with pytest.raises((TypeError, ValueError), match="expected"):
            engine(given)
    for arguments in ((), (x, x)):
        with pytest.raises(TypeError, match="expected"):
            engine(*arguments)


def test_outputs_of_calls_are_their_own() -> None:
    linear = nn.Linear(4, 2).eval()
    engine = quick(linear, torch.randn(1, 4))
    x = torch.randn(6, 1, 4)
    found = [engine(row) for row in x]
    assert torch.allclose(torch.stack(found), linear(x), atol=1e-6)
    assert len({y.data_ptr() for y in found}) == len(found)


@pytest.fixture(params=["dtype", "device"])
def defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Another default of torch for the tensors that it makes."""
    if request.param == "dtype":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.fixture
def made() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
    return nn.Sequential(*layers).eval(), torch.randn(2, 3, 4, 4)


@pytest.mark.usefixtures("made", "defaults")
def test_defaults_of_torch_do_not_matter(made: tuple[nn.Module, Tensor], tmp_path: Any) -> None:
    model, x = made
    engine = quick(model, x)
    engine.save(tmp_path / "model.sinf")
    for own in (engine, load_engine(tmp_path / "model.sinf")):
        y = own(x)
        assert y.dtype == torch.float32 and y.device.type == "cpu"
        assert torch.allclose(y, model(x), atol=1e-5)

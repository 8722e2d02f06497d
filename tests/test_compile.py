"""Compiled networks: what they compute, how they are called, what is refused, and their files."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import (
    SMALL,
    Made,
    efficientnet_lite,
    mobilenet_v1,
    mobilenet_v2,
    prune,
    resnet,
)
from oracle import EPS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

import sparseinfer
from sparseinfer.export import onnxruntime
from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.errors import UnsupportedOperators

LARGE: dict[str, Callable[[], Made]] = {
    "resnet18": lambda: (resnet("basic", 1.0), torch.randn(1, 3, 224, 224)),
    "resnet50": lambda: (resnet("bottleneck", 1.0), torch.randn(1, 3, 224, 224)),
    "mobilenet_v1": lambda: (mobilenet_v1(1.0), torch.randn(1, 3, 224, 224)),
    "mobilenet_v2": lambda: (mobilenet_v2(1.0), torch.randn(1, 3, 224, 224)),
    "efficientnet_lite0": lambda: (efficientnet_lite(), torch.randn(1, 3, 224, 224)),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def quick(model: nn.Module, example: Any, **options: Any) -> Engine:
    """An engine that nobody timed."""
    return compile(model, example, baselines=(), **options)


def check(model: nn.Module, engine: Callable[..., Any], *args: Tensor) -> None:
    """The engine's error against float64 is the model's own, to a small factor."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(*[x.double() for x in args])
        dense = model(*args)
    error = (engine(*args).double() - exact).abs().max()
    own = (dense.double() - exact).abs().max()
    assert error <= 8 * own + 64 * EPS * exact.abs().max()


def run_network(made: Made, sparsity: float, tmp_path: Any) -> None:
    model, x = made
    prune(model, sparsity)
    engine = quick(model, x, threads=2)
    path = tmp_path / "model.sinf"
    engine.save(path)
    for inputs in (x, torch.randn_like(x)):
        check(model, engine, inputs)
        assert torch.equal(load_engine(path, threads=1)(inputs), engine(inputs))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", SMALL)
def test_pruned_networks(name: str, tmp_path: Any) -> None:
    run_network(SMALL[name](), 0.8, tmp_path)


@pytest.mark.parametrize("name", ["mlp", "simple_cnn"])
def test_dense_networks(name: str, tmp_path: Any) -> None:
    run_network(SMALL[name](), 0.0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_large_networks(name: str, sparsity: float, tmp_path: Any) -> None:
    run_network(LARGE[name](), sparsity, tmp_path)


class Branches(nn.Module):
    """Operators that no network above has, and additions of every kind of branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.line = nn.Conv1d(8, 4, 5, stride=2, padding=2)
        self.mean = nn.AdaptiveAvgPool2d((3, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        a = F.gelu(self.first(x))
        b = a + self.grouped(a)
        c = F.silu(self.dilated(b) + b)
        d = torch.sigmoid(a + a) + torch.tanh(c)
        e = self.norm(F.relu6(d))
        pooled = torch.cat([
            F.max_pool2d(e, 3, 2, 1),
            F.pad(F.avg_pool2d(e, 3, 2, 1, count_include_pad=False), (0, 0)),
            F.avg_pool2d(e, 2, 2),
        ], dim=1)  # fmt: skip
        return self.line(e.flatten(2)), {
            "pooled": pooled.softmax(1),
            "mean": self.mean(e),
            "ceil": F.max_pool2d(e, 3, 2, 1, ceil_mode=True),
        }


def test_operators() -> None:
    model = Branches().eval()
    assert isinstance(model.norm.running_var, Tensor)
    model.norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 12, 16)
    engine = quick(model, x)
    line, named = engine(x)
    with torch.no_grad():
        exact_line, exact = copy.deepcopy(model).double()(x.double())
    assert (line - exact_line).abs().max() <= 1e3 * EPS * exact_line.abs().max()
    for key in ("pooled", "mean", "ceil"):
        assert (named[key] - exact[key]).abs().max() <= 1e3 * EPS * exact[key].abs().max()
    assert named.pooled is named["pooled"]
    ops = {node["op"] for node in engine.report().nodes}
    assert {"conv", "depthwise_conv", "add", "activation", "concat", "softmax", "max_pool"} <= ops


def test_a_pass_that_leaves_nothing_to_torch() -> None:
    """Batch norms, activations, additions and paddings are no nodes of their own."""
    model, x = SMALL["mobilenet_v2"]()
    engine = quick(model, x)
    ops = [node["op"] for node in engine.report().nodes if node["runs"]]
    assert set(ops) == {"conv", "depthwise_conv", "global_average_pool", "linear"}
    assert len(ops) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) + 1


def test_converted_models_are_taken() -> None:
    model, x = SMALL["simple_cnn"]()
    prune(model, 0.9)
    sparse = sparseinfer.convert_to_sparse(model, min_speedup=0)
    check(model, quick(sparse, x), x)


def test_masks_are_read_as_they_take_effect() -> None:
    model, x = SMALL["simple_cnn"]()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            torch_prune.l1_unstructured(module, "weight", amount=0.9)
    engine = quick(model, x)
    with torch.no_grad():
        assert (engine(x) - model(x)).abs().max() < 1e-5
    for node in engine.report().nodes:
        assert node["nnz"] <= 0.11 * node["weights"]
    assert torch.equal(model[0].weight, model[0].weight_orig * model[0].weight_mask)


def test_keywords_and_what_is_fixed(tmp_path: Any) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None, twice: bool = False) -> Any:
            total = x + x if twice else x
            return {"sum": total if y is None else total + y, "x": [total]}

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    engine = quick(Scaled().eval(), {"twice": True, "y": y, "x": x})
    engine.save(tmp_path / "model.sinf")
    for own in (engine, load_engine(tmp_path / "model.sinf")):
        for found in (own(x, y, True), own(y=y, x=x, twice=True), own(x, twice=True, y=y)):
            assert torch.equal(found["sum"], x + x + y) and torch.equal(found.x[0], x + x)
        with pytest.raises(ValueError, match="expected twice to be True"):
            own(x, y, False)
        with pytest.raises(TypeError, match="got none for y"):
            own(x, twice=True)
        with pytest.raises(TypeError, match="got z which the model does not take"):
            own(x, y, True, z=1)
        with pytest.raises(TypeError, match="got x twice"):
            own(x, y, x=x)
        with pytest.raises(TypeError, match="at most 3 positional arguments, got 4"):
            own(x, y, True, 1)


def test_inputs_that_are_refused() -> None:
    engine = quick(nn.Linear(4, 2).eval(), torch.zeros(3, 4))
    for shape in ((2, 4), (0, 4), (3, 5), (4,), (3, 4, 1)):
        with pytest.raises(ValueError, match=r"expected \[3, 4\] for input, got"):
            engine(torch.zeros(shape))
    for wrong in (torch.zeros(3, 4).double(), torch.zeros(3, 4).half(), torch.zeros(3, 4).int()):
        with pytest.raises(TypeError, match="expected float32 on the CPU"):
            engine(wrong)
    with pytest.raises(TypeError, match="on meta"):
        engine(torch.zeros(3, 4, device="meta"))
    with pytest.raises(TypeError, match="expected a tensor for input, got list"):
        engine([1.0])
    with pytest.raises(TypeError, match="got none for input"):
        engine()


def test_layouts_of_inputs_do_not_matter() -> None:
    model, x = SMALL["simple_cnn"]()
    engine = quick(model, x)
    expected = engine(x)
    assert torch.equal(engine(x.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(engine(torch.stack([x, x], -1)[..., 0]), expected)
    assert not engine(x.clone().requires_grad_()).requires_grad


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


def test_missing_operators_are_listed() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), Sorts(), nn.Sequential(nn.Softplus(), Sorts()), nn.CELU(2.0)
    ).eval()
    with pytest.raises(UnsupportedOperators, match=r"got [0-9]+ that it has not") as caught:
        quick(model, torch.zeros(2, 4))
    found = {(missing.op, missing.module) for missing in caught.value.missing}
    assert ("aten.sort.default", "1") in found
    assert ("aten.sort.default", "2.1") in found
    assert {module for _, module in found} == {"1", "2.1", "3"}
    for missing in caught.value.missing:
        assert f"{missing.op} in '{missing.module}': " in str(caught.value)


def test_what_stays_unfused_is_listed() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(1, 2)

    with pytest.raises(UnsupportedOperators, match="matmul in"):
        quick(Product().eval(), torch.zeros(1, 3, 4))


def test_a_roll_of_all_dimensions_as_one_is_refused() -> None:
    class Rolls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.roll(x, 1)

    with pytest.raises(UnsupportedOperators, match="it rolls all dimensions as one"):
        quick(Rolls().eval(), torch.zeros(2, 4))


def test_models_that_are_refused() -> None:
    x = torch.zeros(1, 4)
    for model, error, text in (
        (nn.Linear(4, 2), ValueError, r"try model.eval\(\)"),
        (nn.Sequential(nn.Linear(4, 2).eval(), nn.Dropout()), ValueError, "training mode"),
        (nn.Linear(4, 2, device="meta").eval(), ValueError, r"on meta; try model.cpu\(\)"),
        (nn.Linear(4, 2).double().eval(), ValueError, r"try model.float\(\)"),
        (nn.Linear(4, 2).bfloat16().eval(), ValueError, r"try model.float\(\)"),
        ("model", TypeError, "expected an nn.Module, got str"),
    ):
        with pytest.raises(error, match=text):
            quick(model, x)  # type: ignore[arg-type]
    model = nn.Linear(4, 2).eval()
    with pytest.raises(ValueError, match="expected one example of the inputs, got 2"):
        quick(model, [x, x])
    with pytest.raises(ValueError, match="expected baselines of eager, onnxruntime"):
        compile(model, x, baselines=("tensorrt",))
    with pytest.raises(ValueError, match="expected threads >= 1, got 0"):
        quick(model, x, threads=0)
    with pytest.raises(TypeError, match="try a module around the model"):
        quick(model, ([x],))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_models_are_refused() -> None:
    with pytest.raises(ValueError, match="which runs on a GPU"):
        quick(nn.Linear(4, 2).eval().cuda(), torch.zeros(1, 4))


def test_a_model_stays_as_it_is() -> None:
    model, x = SMALL["mobilenet_v2"]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quick(model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseinfer.export.passes import batch_norm

    model, x = SMALL["mobilenet_v2"]()
    right = batch_norm._affine
    monkeypatch.setattr(batch_norm, "_affine", lambda node: (right(node)[0], -right(node)[1]))
    with pytest.raises(RuntimeError, match="folded into"):
        quick(model, x)
    monkeypatch.setattr(batch_norm, "_check", lambda *args: None)
    with pytest.raises(RuntimeError, match="of the model in float64, got"):
        quick(model, x)


def test_calls_from_many_threads() -> None:
    model, x = SMALL["simple_cnn"]()
    engine = quick(model, x, threads=2)
    inputs = [torch.randn_like(x) for _ in range(8)]
    expected = [engine(each) for each in inputs]
    found: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        found[index] = [engine(inputs[index]) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, outputs in found.items():
        assert all(torch.equal(output, expected[index]) for output in outputs)


def test_the_report_tells_of_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = SMALL["mlp"]()
    engine = compile(model, x, budget_s=0.05)
    report = engine.report()
    assert [race.other for race in report.races] == ["the model as it was"]
    assert "x the model as it was (" in str(report) and "95%" in str(report)
    assert "outputs within" in str(report) and "0: linear panel, 0% zeros" in str(report)
    monkeypatch.setattr(
        "sparseinfer.export.compile.onnxruntime_call",
        lambda *args: (lambda: None, "onnxruntime is not installed"),
    )
    missing = compile(model, x, baselines=("onnxruntime",)).report()
    assert "not timed against ONNX Runtime: onnxruntime is not installed" in str(missing)
    assert "not timed" in str(quick(model, x).report())


def test_onnxruntime_computes_the_same() -> None:
    pytest.importorskip("onnxruntime")
    model, x = SMALL["simple_cnn"]()
    call, why = onnxruntime.onnxruntime_call(model, (x,), {}, 1)
    assert not why
    (found,) = call()  # type: ignore[misc]
    with torch.no_grad():
        assert torch.allclose(torch.as_tensor(found), model(x), atol=1e-4)


def test_profile() -> None:
    model, x = SMALL["simple_cnn"]()
    prune(model, 0.5)
    profile = quick(model, x).profile(x, repeats=3)
    assert sum(node.share for node in profile.nodes) == pytest.approx(1.0)
    assert all(node.ms > 0 for node in profile.nodes)
    sparsity = [node.sparsity for node in profile.nodes if node.format == "panel"]
    assert all(found is not None and 0.4 < found < 0.6 for found in sparsity[1:])
    assert all(node.name in str(profile) for node in profile.nodes)
    assert '"gflops"' in profile.to_json()
    with pytest.raises(ValueError, match="expected repeats >= 1, got 0"):
        quick(model, x).profile(x, repeats=0)


def test_zero_weights_are_not_stored() -> None:
    model, x = SMALL["mlp"]()
    dense = quick(model, x).report().file_bytes
    prune(model, 0.9)
    assert quick(model, x).report().file_bytes < 0.35 * dense

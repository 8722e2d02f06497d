"""The converted model runs its own sparse layers, whatever functions on it hold the original."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import sparse_weight
from torch import Tensor, nn

import sparseinfer
from sparseinfer import SparseLinear, convert_to_sparse, report
from sparseinfer.convert.decide import Decider
from sparseinfer.convert.reads import weight_reads

X = torch.randn(4, 16)


def _layer() -> nn.Linear:
    layer = nn.Linear(16, 16)
    layer.weight.data = sparse_weight(layer.weight.shape, 0.2)
    return layer


def _network() -> Any:
    return nn.Sequential(_layer(), nn.ReLU(), _layer())


def _ran(model: nn.Module) -> int:
    """How many sparse layers a call of the model runs."""
    ran: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, SparseLinear):
            module.register_forward_hook(lambda layer, *_: ran.add(layer))
    model(X)
    return len(ran)


def _said(model: nn.Module) -> int:
    return sum(layer.is_sparse for layer in report(model).layers)


def _bound() -> nn.Module:
    model = _network()
    model.forward = model.forward
    return model


def _lambda() -> nn.Module:
    model = _network()
    old = model.forward
    model.forward = lambda *args: old(*args)
    return model


def _decorated() -> nn.Module:
    model = _network()
    old = model.forward

    def twice(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

        return wrapper

    model.forward = twice(twice(old))
    return model


def _partial() -> nn.Module:
    model = _network()
    model.forward = functools.partial(lambda own, x: nn.Sequential.forward(own, x), model)
    return model


def _default() -> nn.Module:
    model = _network()
    model.forward = lambda x, first=model[0], last=model[2]: last(first(x))
    return model


def _inner() -> nn.Module:
    model = nn.Sequential(_lambda())
    return model


def _hook() -> nn.Module:
    model = nn.Sequential(_layer())
    model.second = _layer()
    second: Any = model.second
    model[0].register_forward_hook(lambda module, args, output: second(output))
    model.forward = lambda x: model[0](x)
    return model


class _Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.child = _layer(), _layer(), nn.Module()
        self.child.up = weakref.ref(self)

    def forward(self, x: Tensor) -> Tensor:
        child: Any = self.child
        return child.up().last(self.first(x))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("make", [_bound, _lambda, _decorated, _partial, _inner, _Up])
@pytest.mark.parametrize("examples", [True, False])
def test_functions_on_the_model_run_its_own_layers(
    make: Callable[[], nn.Module], inplace: bool, examples: bool
) -> None:
    model = make()
    expected = model(X)
    sparse = convert_to_sparse(
        model, example_inputs=X if examples else None, min_speedup=0, inplace=inplace, budget_s=2,
        cache=False,
    )  # fmt: skip
    assert _said(sparse) == 2 == _ran(sparse)
    torch.testing.assert_close(sparse(X), expected, rtol=1e-4, atol=1e-4)
    if not inplace:
        assert _ran(model) == 0


def _method() -> nn.Module:
    model = _network()
    first, model.first = model[0], model[0].forward
    model.forward = lambda x: model[2](model.first(x))
    assert first is model[0]
    return model


@pytest.mark.parametrize("examples", [True, False])
@pytest.mark.parametrize(("make", "inplace", "sparse"), [
    (_default, True, 0), (_default, False, None), (_hook, True, 1), (_hook, False, None),
    (_method, True, 1), (_method, False, 1),
])  # fmt: skip
def test_layers_that_functions_hold_stay_dense(
    make: Callable[[], nn.Module], inplace: bool, sparse: int | None, examples: bool
) -> None:
    model = make()
    expected = model(X)
    converted = convert_to_sparse(
        model, example_inputs=X if examples else None, min_speedup=0, inplace=inplace, budget_s=2,
        cache=False,
    )  # fmt: skip
    said = {id(layer) for layer in converted.modules() if isinstance(layer, SparseLinear)}
    if sparse is not None:
        assert len(said) == sparse
    ran: set[int] = set()
    for module in converted.modules():
        module.register_forward_hook(lambda layer, *_: ran.add(id(layer)))
    torch.testing.assert_close(converted(X), expected, rtol=1e-4, atol=1e-4)
    assert said <= ran and len(said) == _said(converted)


@pytest.mark.parametrize("examples", [True, False])
def test_compiled_functions_are_refused_unless_in_place(examples: bool) -> None:
    def make() -> Any:
        model = nn.Sequential(_network())
        model[0].forward = torch.compile(model[0].forward, backend="eager")
        return model

    given = X if examples else None
    with pytest.raises(TypeError, match=r"0\.forward holds the original's.*try inplace=True"):
        convert_to_sparse(make(), example_inputs=given, min_speedup=0, budget_s=2)
    sparse = convert_to_sparse(
        make(), example_inputs=given, min_speedup=0, inplace=True, budget_s=2
    )
    with torch.compiler.set_stance("force_eager"):
        assert _ran(sparse) == _said(sparse) == 2


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("make", [_network, _layer])
def test_compiled_submodules(make: Callable[[], nn.Module], inplace: bool) -> None:
    model = nn.Sequential(torch.compile(make(), backend="eager"), _layer())
    expected = model(X)
    sparse = convert_to_sparse(
        model, example_inputs=X, min_speedup=0, inplace=inplace, budget_s=2, cache=False
    )
    torch.testing.assert_close(sparse(X), expected, rtol=1e-4, atol=1e-4)
    with torch.compiler.set_stance("force_eager"):
        assert _ran(sparse) == _said(sparse) > 1


class _Named(nn.Sequential):
    """An attribute and a method have the name of a global module, which neither of them reads."""

    def __init__(self) -> None:
        super().__init__(_layer())
        self.model = _layer()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.model(x))


model: Any = _Named()


def _global() -> nn.Module:
    model.forward = lambda x: model.model(x)
    return model  # type: ignore[no-any-return]


def _cached() -> nn.Module:
    made = _network()
    made.last = functools.lru_cache(lambda: made[2])
    made.last()
    made.forward = functools.partial(lambda own, x: own.last()(own[0](x)), made)
    return made  # type: ignore[no-any-return]


def _weakly() -> nn.Module:
    made = _network()
    made.parts = weakref.WeakValueDictionary({"last": made[2]})
    made.forward = functools.partial(lambda own, x: own.parts["last"](own[0](x)), made)
    return made  # type: ignore[no-any-return]


def _class() -> nn.Module:
    last = _layer()

    class Closing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = _layer(), last

        def forward(self, x: Tensor) -> Tensor:
            return last(self.first(x))

    return Closing()


@pytest.mark.parametrize("make", [_global, _cached, _weakly, _class])
def test_a_copy_that_would_run_the_original_is_refused_without_examples(
    make: Callable[[], nn.Module],
) -> None:
    with pytest.raises(TypeError, match=r"holds? the original's.*try inplace=True"):
        convert_to_sparse(make(), min_speedup=0)


def test_names_of_globals_are_no_reads_of_them() -> None:
    sparse = convert_to_sparse(_Named(), min_speedup=0)
    assert _ran(sparse) == _said(sparse) == 2


def test_a_function_with_a_cache_of_its_own_runs_the_copy() -> None:
    made = _network()
    made.forward = functools.singledispatch(lambda x: made[2](made[0](x)))
    expected = made(X)
    sparse = convert_to_sparse(made, min_speedup=0)
    assert _ran(sparse) == _said(sparse) == 2
    torch.testing.assert_close(sparse(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("examples", [True, False])
def test_a_model_that_is_its_own_copy_says_that_nothing_runs(examples: bool) -> None:
    class Single(nn.Sequential):
        def __deepcopy__(self, memo: object) -> Single:
            return self

    sparse = convert_to_sparse(
        Single(_layer()), example_inputs=X if examples else None, min_speedup=0, budget_s=1
    )
    assert _said(sparse) == 0 and "does not run it" in report(sparse).layers[0].reason


_SHARED: dict[str, nn.Module] = {}


def test_a_layer_called_by_another_way_stays_dense() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = _layer(), _layer()
            _SHARED["first"] = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.last(_SHARED["first"](x))

    sparse = convert_to_sparse(Elsewhere(), example_inputs=X, min_speedup=0, budget_s=2)
    first, last = report(sparse).layers
    assert first.reason.endswith("a call of the converted model does not run it")
    assert (first.is_sparse, last.is_sparse) == (False, True) and _ran(sparse) == 1


@pytest.mark.parametrize("error", [MemoryError, RuntimeError("expected this, got that\nmore")])
def test_an_error_in_one_layer_is_its_reason(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decide = Decider._decide

    def fail(self: Decider, layer: Any) -> Any:
        if layer.name == "0":
            raise error
        return decide(self, layer)

    monkeypatch.setattr(Decider, "_decide", fail)
    first, last = report(convert_to_sparse(_network(), min_speedup=0)).layers
    assert first.reason.startswith("it could not be measured: ") and not first.is_sparse
    assert "more" not in first.reason and last.is_sparse


def test_a_layer_that_raises_in_the_model_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _network()
    model[0].register_forward_hook(_dense_only)
    sparse = convert_to_sparse(model, example_inputs=X, min_speedup=0, budget_s=2)
    first, last = report(sparse).layers
    assert first.reason.endswith("raised TypeError: dense layers only") and last.is_sparse
    assert _ran(sparse) == 1


def _dense_only(module: nn.Module, args: object, output: object) -> None:
    if isinstance(module, SparseLinear):
        raise TypeError("dense layers only")


def test_a_layer_that_cannot_be_read_stops_no_model() -> None:
    class Odd(nn.Linear):
        @property
        def transposed(self) -> bool:
            raise OSError("gone")

    model = nn.Sequential(Odd(16, 16), _layer())
    assert "it cannot be read: OSError: gone" in report(model).layers[0].reason
    assert report(convert_to_sparse(model, min_speedup=0)).layers[1].is_sparse


def test_a_model_that_cannot_be_copied_names_inplace() -> None:
    model = _network()
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"_thread.lock.*; try inplace=True"):
        convert_to_sparse(model, example_inputs=X, min_speedup=0, budget_s=2)
    assert _said(convert_to_sparse(model, min_speedup=0, inplace=True)) == 2


def test_kept_activations_are_copied_without_their_graph() -> None:
    model = _network()
    model.kept = {"losses": [model(X).sum()]}
    sparse: Any = convert_to_sparse(model, example_inputs=X, min_speedup=0, budget_s=2)
    assert sparse.kept["losses"][0].grad_fn is None
    assert model.kept["losses"][0].grad_fn is not None


def test_the_meta_device_is_told() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    assert "the model is on the meta device" in report(convert_to_sparse(model)).sentence


class _Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = _layer(), _layer()
        self.layers = nn.ModuleList([_layer()])


class _Direct(_Reads):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.other(x), self.layer.weight)


class _Transposed(_Reads):
    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        return torch.matmul(self.other(x), layer.weight.T)


class _Einsum(_Reads):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", self.other(x), self._head().weight)

    def _head(self) -> nn.Linear:
        return self.layer


class _Inherited(_Direct):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def _apply(x: Tensor, layer: nn.Linear) -> Tensor:
    return x @ layer.weight.t()


class _Helper(_Reads):
    def forward(self, x: Tensor) -> Tensor:
        return _apply(self.other(x), self.layer)


@pytest.mark.parametrize("cls", [_Direct, _Transposed, _Einsum, _Inherited, _Helper])
def test_weights_that_the_code_reads_stay_dense(cls: type[_Reads]) -> None:
    model = cls()
    assert list(weight_reads(model)) == [model.layer]
    sparse = convert_to_sparse(model, min_speedup=0)
    found = {layer.name: layer for layer in report(sparse).layers}
    assert "forward reads its weight" in found["layer"].reason and not found["layer"].is_sparse
    assert found["other"].is_sparse
    torch.testing.assert_close(sparse(X), model(X), rtol=1e-4, atol=1e-4)


def test_weights_read_in_a_loop() -> None:
    class Loop(_Reads):
        def forward(self, x: Tensor) -> Tensor:
            for _, layer in enumerate(self.layers):
                x = nn.functional.linear(x, layer.weight, layer.bias)
            return self.other(x)

    model = Loop()
    assert list(weight_reads(model)) == [model.layers[0]]


def test_what_needs_no_values_is_no_read() -> None:
    class Casting(_Reads):
        def forward(self, x: Tensor) -> Tensor:
            if isinstance(self.layer.weight, Tensor) and x.dtype != self.layer.weight.dtype:
                x = x.to(self.layer.weight.dtype, device=self.layer.weight.device)
            return self.layer(x)

        def reset(self) -> None:
            nn.init.zeros_(self.layer.weight)

    assert weight_reads(Casting()) == {}


@pytest.mark.parametrize("shape", [(1, 6), (1, 98), (1, 2, 7, 7), (1, 1, 5), (1, 64, 1, 1)])
def test_weights_of_one_row_have_a_pattern(shape: tuple[int, ...]) -> None:
    weight = sparse_weight(shape, 0.5)
    assert str(sparseinfer.formats.patterns.detect_pattern(weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Linear(16, 24, bias=False), (3, 16)), (nn.Conv2d(4, 6, 3), (1, 4, 8, 8)),
    (nn.ConvTranspose1d(4, 6, 2, stride=2), (1, 4, 8)), (nn.LSTM(8, 12), (5, 2, 8)),
    (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (2, 5, 16)),
])  # fmt: skip
def test_narrow_models_convert_on_the_cpu(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(layer).eval().to(dtype), torch.randn(shape).to(dtype)
    sparse = convert_to_sparse(model, example_inputs=x, min_speedup=0, budget_s=2, cache=False)
    assert all(found.is_sparse for found in report(sparse).layers)
    wide = "bfloat16" if dtype is torch.bfloat16 else "float32"
    for module in sparse.modules():
        if isinstance(module, SparseLinear):
            assert module.handle.info["value_type"] == wide and module.weight.dtype is dtype
    y, expected = sparse(x), model(x)
    loaded = sparseinfer.load_converted(model, sparse.state_dict())(x)
    if isinstance(y, tuple):
        y, expected, loaded = y[0], expected[0], loaded[0]
    assert y.dtype is dtype and torch.equal(loaded, y)
    error = 4 * torch.finfo(dtype).eps * float(expected.detach().abs().max())
    torch.testing.assert_close(y, expected, rtol=0, atol=error)
    assert next(iter(sparse.float().parameters()), x.float()).dtype is torch.float32


def test_narrow_layers_are_not_modelled() -> None:
    model = nn.Sequential(_layer()).bfloat16()
    assert "no cost model for bfloat16" in report(convert_to_sparse(model)).layers[0].reason

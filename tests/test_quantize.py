"""Scales, observers and fake quantisation: integers against exact arithmetic, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparseinfer.prune import Pruner
from sparseinfer.quantize import (
    OBSERVERS,
    SCHEMES,
    ActivationScale,
    add_fake_quant,
    observer,
    quantize_per_token,
    quantize_weight,
    remove_fake_quant,
    scale_of_range,
    scheme_for,
    sqnr_db,
    weight_scales,
)
from sparseinfer.quantize.activations import range_of_token, ranges_per_token
from sparseinfer.quantize.observers import Mse, Percentile
from sparseinfer.quantize.scheme import renamed_value_type

NAN, INF = float("nan"), float("inf")

# ---- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", SCHEMES, ids=str)
def test_every_row_is_built_or_says_what_it_lacks(row) -> None:
    if not row.missing:
        assert scheme_for(row.weights, row.activations) is row
        return
    with pytest.raises(NotImplementedError) as error:
        scheme_for(row.weights, row.activations)
    assert row.missing in str(error.value) and "not built yet" in str(error.value)


def test_activations_follow_the_weights() -> None:
    assert scheme_for().activations == "float32"
    assert scheme_for("bfloat16").activations == "float32"
    assert scheme_for("int8").activations == "int8"


def test_unknown_words() -> None:
    with pytest.raises(ValueError, match="expected weights of float32, bfloat16, int8, int4, got"):
        scheme_for("half")
    with pytest.raises(ValueError, match=r"expected activations of .*, got 'int4'"):
        scheme_for("int8", "int4")
    with pytest.raises(ValueError, match="got float32 and int8"):
        scheme_for("float32", "int8")


def test_the_old_word_for_weights() -> None:
    assert renamed_value_type("bfloat16", None) == "bfloat16"
    with pytest.warns(DeprecationWarning, match="try weights='bfloat16'"):
        assert renamed_value_type("float32", "bfloat16") == "bfloat16"
    with pytest.raises(TypeError, match="got weights='int8' and value_type='bfloat16'"):
        renamed_value_type("int8", "bfloat16")


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (6, 3, 3), (4, 2, 3, 3)])
def test_weights_are_within_half_a_step(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape) * torch.logspace(-6, 6, shape[0]).reshape(-1, *[1] * len(shape[1:]))
    found = quantize_weight(weight)
    assert found.values.dtype is torch.int8 and found.scales.shape == shape[:1]
    steps = found.scales.reshape(-1, *[1] * len(shape[1:]))
    assert ((found.dequantize() - weight).abs() <= 0.5001 * steps).all()
    assert (found.values.abs().flatten(1).amax(1) == 127).all()
    again = quantize_weight(found.dequantize())
    assert torch.equal(again.values, found.values)


def test_zeros_stay_zeros() -> None:
    weight = torch.randn(4, 8) * (torch.rand(4, 8) > 0.5)
    weight[2] = 0
    found = quantize_weight(weight)
    assert not found.values[weight == 0].any() and found.scales[2] == 1


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (torch.tensor([[1.0, NAN]]), "got 1 NaN or Inf"),
        (torch.tensor([[INF, -INF]]), "got 2 NaN or Inf"),
        (torch.tensor([[1.0], [1e-39]]), "in row 1"),
        (torch.tensor([[1e30], [1.0]]), "in row 0"),
        (torch.zeros(4, 0), r"got shape \[4, 0\]"),
        (torch.zeros(4), r"got shape \[4\]"),
    ],
)
def test_weights_without_a_scale(weight: torch.Tensor, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        weight_scales(weight)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (torch.ones(3), r"each of 2 output rows, got shape \[3\]"),
        (torch.ones(2, 1), r"got shape \[2, 1\]"),
        (torch.tensor([1.0, 0.0]), "got 0 for row 1"),
        (torch.tensor([-1.0, 1.0]), "got -1 for row 0"),
        (torch.tensor([1.0, NAN]), "got nan for row 1"),
        (torch.tensor([1.0, INF]), "got inf for row 1"),
        (torch.tensor([1.0, 0.001]), "got 0.001 for row 1, which needs"),
    ],
)
def test_scales_of_others_that_do_not_fit(scales: torch.Tensor, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        quantize_weight(torch.ones(2, 4), scales)


def test_scales_of_others() -> None:
    found = quantize_weight(torch.tensor([[1.0, -2.0], [3.0, 0.2]]), torch.tensor([1.0, 0.1]))
    assert found.values.tolist() == [[1, -2], [30, 2]]


# ---- activations -------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-3.0, 5.0), (-7.0, 0.0), (2.0, 9.0), (-9.0, -1.0)])
def test_a_range_is_covered_and_zero_is_exact(bounds: tuple[float, float]) -> None:
    scale = scale_of_range(*bounds)
    x = torch.linspace(*bounds, 1000)
    assert (scale.dequantize(scale.quantize(x)) - x).abs().max() <= 1.001 * scale.scale
    zero = torch.zeros(1)
    assert torch.equal(scale.dequantize(scale.quantize(zero)), zero)


@pytest.mark.parametrize(
    "bounds",
    [(NAN, 1.0), (0.0, INF), (-INF, 0.0), (1.0, -1.0), (0.0, 0.0), (0.0, 1e-40), (-3e38, 3e38)],
)
def test_ranges_without_a_scale(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"expected .*, got .*; try "):
        scale_of_range(*bounds)


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF])
def test_bad_activation_scales(scale: float) -> None:
    with pytest.raises(ValueError, match="expected a scale of activations of 2"):
        ActivationScale(scale, 0)


@pytest.mark.parametrize(("scale", "zero_point"), [("1", 0), (None, 0), (1.0, 0.5), (1.0, "0")])
def test_scales_that_are_no_numbers(scale, zero_point) -> None:
    with pytest.raises(TypeError, match="expected a number and a whole number"):
        ActivationScale(scale, zero_point)


@pytest.mark.parametrize("zero_point", [-1, 256])
def test_bad_zero_points(zero_point: int) -> None:
    with pytest.raises(ValueError, match="expected a zero point from 0 to 255"):
        ActivationScale(1.0, zero_point)


def test_each_token_has_its_own_scale() -> None:
    x = torch.randn(3, 5, 40) * torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1, 1)
    x[0, 0] = 0
    levels, scale, zero_point = quantize_per_token(x)
    assert levels.dtype is torch.uint8 and scale.shape == (3, 5, 1)
    error = ((levels.float() - zero_point) * scale - x).abs()
    assert (error <= 1.001 * scale).all() and not error[0, 0].any()


@pytest.mark.parametrize("exponent", [-150, -63, -30, 0, 30, 60, 125])
def test_one_token_has_the_scale_of_many(exponent: int) -> None:
    x = torch.randn(200, 7) * 2.0**exponent + torch.randn(200, 1) * 2.0**exponent
    x[0], x[1, :], x[2] = 0, -0.0, x[2].abs()
    for place, bad in ((3, NAN), (4, INF), (5, -INF)):
        x[place, 3] = bad
    x[6, 0], x[6, 1] = NAN, INF
    scales, zero_points = ranges_per_token(x)
    for token, scale, zero_point in zip(x, scales.tolist(), zero_points.tolist(), strict=True):
        found = range_of_token(token)
        assert found == (scale, zero_point) or (math.isnan(scale) and math.isnan(found[0]))
        assert found[1] == zero_point


# ---- observers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OBSERVERS)
def test_batches_count_together(method: str) -> None:
    whole, parts = observer(method), observer(method)
    x = torch.randn(4000) * torch.linspace(0.1, 5, 4000)
    whole.observe(x)
    for part in x.split(1000):  # the limit of a histogram doubles on the way
        parts.observe(part)
    assert whole.count == parts.count == 4000
    assert whole.result().scale == pytest.approx(parts.result().scale, rel=0.02)
    parts.observe(torch.empty(0))
    assert parts.count == 4000


def test_min_max_takes_every_value_in() -> None:
    seen = observer("minmax")
    seen.observe(torch.tensor([-2.0, 1.0]))
    seen.observe(torch.tensor([100.0]))
    assert seen.result() == scale_of_range(-2.0, 100.0)


@pytest.mark.parametrize(("method", "values"), [("percentile", 100_000), ("mse", 2_000_000)])
def test_outliers_do_not_coarsen_the_rest(method: str, values: int) -> None:
    x = torch.randn(values)  # of fewer values the squared error of a clipped one would outweigh all
    x[0] = 200.0
    seen, plain = observer(method), observer("minmax")
    seen.observe(x)
    plain.observe(x)
    assert seen.result().scale < plain.result().scale / 3
    rounded = [one.result().dequantize(one.result().quantize(x[1:])) for one in (seen, plain)]
    assert sqnr_db(x[1:], rounded[0]) > sqnr_db(x[1:], rounded[1]) + 8


def test_mse_is_no_worse_than_min_max_on_what_it_saw() -> None:
    for x in (
        torch.rand(5000),
        torch.randn(5000),
        torch.randn(5000).relu(),
        torch.randn(5000) ** 3,
    ):
        errors = {}
        for method in ("mse", "minmax"):
            seen = observer(method)
            seen.observe(x)
            errors[method] = sqnr_db(x, seen.result().dequantize(seen.result().quantize(x)))
        assert errors["mse"] >= errors["minmax"] - 0.1


def test_a_constant_has_a_range() -> None:
    for method in OBSERVERS:
        seen = observer(method)
        seen.observe(torch.full((10,), 3.0))
        found = seen.result()
        x = torch.tensor([3.0])
        assert (found.dequantize(found.quantize(x)) - x).abs() <= found.scale


@pytest.mark.parametrize("method", OBSERVERS)
def test_observers_refuse(method: str) -> None:
    with pytest.raises(ValueError, match="expected activations to calibrate from, got none"):
        observer(method).result()
    for bad in (NAN, INF, -INF):
        with pytest.raises(ValueError, match="got 1 NaN or Inf among 3"):
            observer(method).observe(torch.tensor([0.0, bad, 1.0]))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        observer(method).observe(torch.ones(3, dtype=torch.int64))
    seen = observer(method)
    seen.observe(torch.zeros(3))
    with pytest.raises(ValueError, match="got a range of 0 to 0"):
        seen.result()


def test_unknown_observers() -> None:
    with pytest.raises(ValueError, match="expected a method of minmax, percentile, mse, got 'kl'"):
        observer("kl")
    for share in (50, 101, NAN):
        with pytest.raises(ValueError, match="expected a percentile above 50"):
            Percentile(share)
    assert isinstance(observer("mse"), Mse)


# ---- error -------------------------------------------------------------------------------------


def test_signal_over_noise() -> None:
    y = torch.randn(1000)
    assert sqnr_db(y, y) == math.inf and sqnr_db(y * 0, y) == -math.inf
    assert sqnr_db(y, y * 0) == 0
    assert sqnr_db(y, y * NAN) == -math.inf
    with pytest.raises(ValueError, match="expected outputs of one shape"):
        sqnr_db(y, y[:1])


# ---- fake quantisation -------------------------------------------------------------------------


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10)
    )  # fmt: skip


def test_fake_quantised_layers_compute_with_rounded_tensors() -> None:
    model, x = _net(), torch.randn(2, 1, 8, 8)
    scales = {"0": scale_of_range(-3.0, 3.0)}
    weights = {name: quantize_weight(model[int(name)].weight).dequantize() for name in "03"}
    rounded = scales["0"].dequantize(scales["0"].quantize(x.clamp(-3, 3)))
    inner = nn.functional.conv2d(rounded, weights["0"], model[0].bias).relu().flatten(1)
    levels, scale, zero_point = quantize_per_token(inner)
    inner = (levels.float() - zero_point) * scale
    expected = nn.functional.linear(inner, weights["3"], model[3].bias)
    torch.testing.assert_close(add_fake_quant(model, scales)(x), expected)


def test_masked_weights_learn_behind_their_masks() -> None:
    model, x = _net(), torch.randn(8, 1, 8, 8)
    for layer in (model[0], model[3]):
        prune.random_unstructured(layer, "weight", amount=0.5)
    zeros = [(layer.weight == 0) for layer in (model[0], model[3])]
    before = [layer.weight.detach().clone() for layer in (model[0], model[3])]
    target = torch.randint(0, 10, (8,))
    add_fake_quant(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    remove_fake_quant(model)
    with torch.no_grad():
        model(x)
    for layer, zero, old in zip((model[0], model[3]), zeros, before, strict=True):
        assert not layer.weight[zero].any() and not torch.equal(layer.weight, old)
        assert isinstance(layer.weight_orig, nn.Parameter)


@pytest.mark.parametrize("structure", ["unstructured", "4x1", "1x4"])
def test_a_pruner_holds_its_masks_through_fake_quantisation(structure: str) -> None:
    model, x = _net(), torch.randn(8, 1, 8, 8)
    pruner = Pruner(model, None, 0.75, structure=structure, ignore=["0"])
    pruner.step()
    weight, before = model[3].weight, model[3].weight.detach().clone()
    add_fake_quant(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    pruner.hold(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.randint(0, 10, (8,))).backward()
        optimizer.step()
        pruner.step()
    assert remove_fake_quant(pruner.finalize()) is model and model[3].weight is weight
    assert torch.equal(weight == 0, before == 0) and not torch.equal(weight, before)


def test_removing_gives_back_what_was() -> None:
    model, x = _net(), torch.randn(2, 1, 8, 8)
    expected, names = model(x), {name for name, _ in model.named_parameters()}
    remove_fake_quant(add_fake_quant(model))
    assert torch.equal(model(x), expected)
    assert {name for name, _ in model.named_parameters()} == names
    assert type(model[0]) is nn.Conv2d and not model[0]._forward_pre_hooks


def test_fake_quantisation_refuses() -> None:
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got dict"):
        add_fake_quant({})
    with pytest.raises(ValueError, match="got ReLU without"):
        add_fake_quant(nn.ReLU())
    model = add_fake_quant(_net())
    with pytest.raises(ValueError, match="got one that has it"):
        add_fake_quant(model)

"""Gradual magnitude pruning: the schedule's values, exact counts, masks held while training."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from sparseinfer.prune import MagnitudePruner, PolynomialDecay, global_magnitude_masks


def pruned_total(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


# --- the schedule


def test_schedule_follows_the_published_formula_and_clamps():
    schedule = PolynomialDecay(0.2, 0.8, begin=100, end=300, power=3, frequency=50)
    assert schedule.sparsity(0) == pytest.approx(0.2)
    assert schedule.sparsity(100) == pytest.approx(0.2)
    assert schedule.sparsity(200) == pytest.approx(0.8 - 0.6 * 0.5**3)
    assert schedule.sparsity(300) == 0.8
    assert schedule.sparsity(10**9) == 0.8


def test_schedule_updates_on_the_frequency_with_both_ends_inclusive():
    schedule = PolynomialDecay(0.0, 0.5, begin=10, end=40, frequency=10)
    assert [step for step in range(100) if schedule.is_update(step)] == [10, 20, 30, 40]


def test_schedule_reaches_its_end_when_the_frequency_does_not_divide():
    schedule = PolynomialDecay(0.0, 0.5, begin=0, end=25, frequency=10)
    assert [step for step in range(100) if schedule.is_update(step)] == [0, 10, 20, 25]


@pytest.mark.parametrize(
    "arguments",
    [
        dict(initial=-0.1, final=0.5, begin=0, end=1),
        dict(initial=0.6, final=0.5, begin=0, end=1),
        dict(initial=0.0, final=1.0, begin=0, end=1),
        dict(initial=0.0, final=float("nan"), begin=0, end=1),
        dict(initial=0.0, final=0.5, begin=-1, end=1),
        dict(initial=0.0, final=0.5, begin=1, end=1),
        dict(initial=0.0, final=0.5, begin=0, end=1, power=0),
        dict(initial=0.0, final=0.5, begin=0, end=1, frequency=0),
    ],
)
def test_schedule_rejects_arguments_that_mean_nothing(arguments):
    with pytest.raises(ValueError, match=r"expected .* got .* try"):
        PolynomialDecay(**arguments)


# --- the masks


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    levels=st.integers(1, 5),
    sparsity=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**16),
)
def test_masks_prune_the_exact_count_smallest_first_ties_by_index(sizes, levels, sparsity, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        str(i): torch.randint(-levels, levels + 1, (size,), generator=generator).float()
        for i, size in enumerate(sizes)
    }
    masks = global_magnitude_masks(weights, sparsity)
    flat = torch.cat(list(weights.values())).abs()
    keep = torch.cat([masks[name] for name in weights])
    count = round(sparsity * flat.numel())
    # A stable sort is the plain statement of "smallest first, ties by index".
    expected = torch.ones(flat.numel(), dtype=torch.bool)
    expected[torch.sort(flat, stable=True).indices[:count]] = False
    assert torch.equal(keep, expected)


def test_masks_rank_over_all_layers_not_within_each():
    masks = global_magnitude_masks({"small": torch.full((4,), 0.1), "big": torch.ones(4)}, 0.5)
    assert not masks["small"].any() and masks["big"].all()


def test_masks_count_exactly_when_every_magnitude_is_equal():
    weights = {"a": torch.full((3, 5), -0.5), "b": torch.full((2, 2, 3, 3), 0.5)}
    assert pruned_total(global_magnitude_masks(weights, 0.9)) == round(0.9 * 51)


def test_masks_round_half_to_even_as_torch_does():
    assert pruned_total(global_magnitude_masks({"a": torch.arange(1.0, 6.0)}, 0.5)) == 2
    assert pruned_total(global_magnitude_masks({"a": torch.arange(1.0, 16.0)}, 0.5)) == 8


def test_masks_are_nested_also_when_pruned_weights_have_grown():
    weights = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])}
    first = global_magnitude_masks(weights, 1 / 3)
    grown = {"a": torch.tensor([100.0, 200.0, 3.0, 4.0, 5.0, 6.0])}
    second = global_magnitude_masks(grown, 0.5, held=first)
    assert second["a"].tolist() == [False, False, False, True, True, True]
    assert torch.equal(global_magnitude_masks(grown, 0.0, held=first)["a"], first["a"])


def test_masks_take_mixed_dtypes():
    weights = {"half": torch.ones(4, dtype=torch.bfloat16), "double": torch.ones(4).double() * 2}
    masks = global_magnitude_masks(weights, 0.5)
    assert not masks["half"].any() and masks["double"].all()


def test_masks_work_above_the_limit_of_torch_quantile():
    weight = torch.ones(2**24 + 8)
    weight[::2] = 0.5
    assert pruned_total(global_magnitude_masks({"a": weight}, 0.25)) == round(0.25 * (2**24 + 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_masks_refuse_weights_that_cannot_be_ranked(bad):
    with pytest.raises(ValueError, match="1 NaN or Inf in 'layer'"):
        global_magnitude_masks({"layer": torch.tensor([1.0, bad])}, 0.5)


def test_masks_refuse_a_sparsity_that_is_no_fraction():
    with pytest.raises(ValueError, match=r"\[0, 1\], got 90"):
        global_magnitude_masks({"layer": torch.ones(2)}, 90)


# --- training


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def train_step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(
        model(torch.randn(8, 1, 6, 6)), torch.randint(0, 3, (8,))
    ).backward()
    optimizer.step()


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_are_held_under_every_optimizer_and_its_state_is_masked(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = PolynomialDecay(0.3, 0.9, begin=2, end=12, frequency=5)
    pruner = MagnitudePruner(model, optimizer, schedule)
    total = sum(weight.numel() for weight in pruner.weights.values())
    before = {key: mask.clone() for key, mask in pruner.masks.items()}
    for step in range(20):
        train_step(model, optimizer)
        pruner.step()
        for key, weight in pruner.weights.items():
            mask = pruner.masks[key]
            assert not bool((mask & ~before[key]).any()), "a pruned weight came back"
            assert torch.count_nonzero(weight[~mask]) == 0
            states = [
                value
                for value in optimizer.state[weight].values()
                if isinstance(value, torch.Tensor) and value.shape == weight.shape
            ]
            assert states
            assert all(torch.count_nonzero(value[~mask]) == 0 for value in states)
            before[key] = mask.clone()
        last_update = max((s for s in (2, 7, 12) if s <= step), default=None)
        expected = 0 if last_update is None else round(schedule.sparsity(last_update) * total)
        assert pruned_total(pruner.masks) == expected
    assert pruner.sparsity == pytest.approx(0.9, abs=0.5 / total)


def test_finalize_leaves_a_plain_model():
    model = network()
    keys = list(model.state_dict())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = MagnitudePruner(
        model, optimizer, PolynomialDecay(0.0, 0.5, 0, 1, frequency=1), exclude=["0", "6"]
    )
    for _ in range(2):
        train_step(model, optimizer)
        pruner.step()
    assert pruner.finalize() is model
    assert list(model.state_dict()) == keys
    copy.deepcopy(model)
    assert int((model[3][0].weight == 0).sum()) == 8 * 8 * 9 // 2
    assert torch.count_nonzero(model[0].weight) == model[0].weight.numel()
    assert not model[3][0]._forward_pre_hooks and not model[3][0]._parameters.get("weight_orig")


def test_finalize_refuses_an_unfinished_schedule():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = MagnitudePruner(model, optimizer, PolynomialDecay(0.0, 0.5, 0, 3))
    for _ in range(3):
        pruner.step()
    with pytest.raises(RuntimeError, match=r"at least 4 calls of step.*got 3"):
        pruner.finalize()
    pruner.step()
    pruner.finalize()


def test_exclude_takes_patterns_and_rejects_typos():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    schedule = PolynomialDecay(0.0, 0.5, 0, 3)
    assert list(MagnitudePruner(model, optimizer, schedule, exclude=["3.*", "6"]).weights) == ["0"]
    with pytest.raises(ValueError, match=r"'typo'.*'3.0'"):
        MagnitudePruner(model, optimizer, schedule, exclude=["typo"])
    with pytest.raises(ValueError, match="got none"):
        MagnitudePruner(model, optimizer, schedule, exclude=["*"])


def test_attached_masks_are_refused_by_name():
    model = network()
    prune.l1_unstructured(model[6], "weight", 0.5)
    with pytest.raises(ValueError, match=r"layer '6'.*remove"):
        MagnitudePruner(
            model, OPTIMIZERS["sgd"](model.parameters()), PolynomialDecay(0.0, 0.5, 0, 3)
        )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6)
        self.b.weight = self.a.weight
        self.head.weight = self.embed.weight


def test_tied_weights_count_once_and_an_embedding_is_never_pruned():
    model = Tied()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ValueError, match="'head' shares its weight with 'embed'"):
        MagnitudePruner(model, optimizer, PolynomialDecay(0.0, 0.5, 0, 1))
    pruner = MagnitudePruner(
        model, optimizer, PolynomialDecay(0.0, 0.5, 0, 1, frequency=1), exclude=["head"]
    )
    pruner.step()
    pruner.step()
    pruner.finalize()
    assert list(pruner.weights) == ["a"]
    assert model.a.weight is model.b.weight
    assert int((model.a.weight == 0).sum()) == 8


def test_an_emptied_layer_is_warned_of_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    pruner = MagnitudePruner(
        model, OPTIMIZERS["sgd"](model.parameters()), PolynomialDecay(0.5, 0.6, 0, 2, frequency=1)
    )
    with pytest.warns(UserWarning, match="emptied layer '0'") as caught:
        pruner.step()
        pruner.step()
    assert len(caught) == 1

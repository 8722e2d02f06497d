"""What is pruned: criteria, structures and amounts, counts exact to the unit, ties by index."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparseinfer import prune
from sparseinfer.formats.patterns import detect_pattern
from sparseinfer.prune import NM, Block, Channels, Filters, Pruner, Random, taylor
from sparseinfer.prune.amounts import count_of
from sparseinfer.prune.rank import prune_smallest


def zeros(tensor):
    return int((tensor == 0).sum())


def pruned(model, amount, **options):
    pruner = Pruner(model, **options)
    pruner.prune(amount)
    return pruner


# ---- amounts


@pytest.mark.parametrize("amount", [0, 1, 0.0, 1.0, 0.5, 0.05, 0.9, 7])
def test_amounts_mean_what_they_mean_in_torch(amount):
    for size in (7, 10, 15):
        assert count_of(amount, size) == torch_prune._compute_nparams_toprune(amount, size)


def test_halves_round_to_even_and_one_differs_from_one_point_zero():
    assert [count_of(0.5, size) for size in (15, 5)] == [8, 2]
    assert count_of(1, 10) == 1 and count_of(1.0, 10) == 10
    assert count_of(1 - 0.9, 10) == 1  # int() would make it 0


@pytest.mark.parametrize("amount", [-1, 11, -0.1, 1.1, float("nan")])
def test_amounts_outside_the_range_are_refused(amount):
    with pytest.raises(ValueError, match=r"expected .* got .* try"):
        count_of(amount, 10)


@pytest.mark.parametrize("amount", ["0.5", None, True])
def test_amounts_that_are_no_numbers_are_refused(amount):
    with pytest.raises(TypeError, match="expected amount"):
        count_of(amount, 10)


def test_a_repeated_fraction_applies_to_the_survivors():
    model = nn.Linear(16, 16)
    pruner = pruned(model, 0.5)
    pruner.prune(0.5)
    assert zeros(model.weight) == 192
    prune.l1_unstructured(layer := nn.Linear(16, 16), "weight", 0.5)
    prune.l1_unstructured(layer, "weight", 0.5)
    assert zeros(layer.weight) == 192


# ---- ranking


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    levels=st.integers(1, 5),
    fraction=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**16),
    double=st.booleans(),
)
def test_the_exact_count_goes_smallest_first_ties_by_index(sizes, levels, fraction, seed, double):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(-levels, levels + 1, (n,), generator=generator).float() for n in sizes]
    held = [torch.rand(n, generator=generator) < 0.7 for n in sizes]
    flat, kept = torch.cat(scores).abs(), torch.cat(held)
    count = round(fraction * int(kept.sum()))
    # A stable sort is the plain statement of "smallest first, ties by index".
    alive = kept.nonzero().reshape(-1)
    expected = kept.clone()
    expected[alive[torch.sort(flat[alive], stable=True).indices[:count]]] = False
    given_scores = [score.double() for score in scores] if double else scores
    assert torch.equal(torch.cat(prune_smallest(given_scores, count, held)), expected)


def test_ranking_in_pieces_equals_ranking_at_once(monkeypatch):
    score = torch.randint(-9, 10, (31, 17, 3, 3)).float()
    whole = prune_smallest([score], 2000)[0]
    monkeypatch.setattr("sparseinfer.prune.rank.CHUNK", 64)
    assert torch.equal(prune_smallest([score], 2000)[0], whole)
    strided = score.to(memory_format=torch.channels_last)
    assert torch.equal(prune_smallest([strided], 2000)[0], whole)


def test_ranking_refuses_more_than_is_left():
    with pytest.raises(ValueError, match="got 3"):
        prune_smallest([torch.ones(4)], 3, [torch.tensor([True, True, False, False])])


def test_ranking_works_above_the_limit_of_torch_quantile():
    score = torch.ones(2**24 + 8)
    score[::2] = 0.5
    assert int((~prune_smallest([score], 2**22)[0]).sum()) == 2**22


def test_ranking_takes_mixed_dtypes():
    masks = prune_smallest([torch.ones(4, dtype=torch.bfloat16), torch.ones(4).double() * 2], 4)
    assert not masks[0].any() and masks[1].all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_without_a_rank_are_refused_by_name(bad):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data[0, 0] = bad
    with pytest.raises(ValueError, match=r"1 NaN or Inf in '1\.weight'"):
        pruned(model, 0.5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_global_magnitude_of_100_million_weights_takes_little_memory():
    script = """
    import torch
    from torch import nn
    from sparseinfer.prune import Pruner

    def peak():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(l.split()[1]) for l in lines if l.startswith("VmHWM")) * 1024

    model = nn.Sequential(*(nn.Linear(5000, 5000, bias=False) for _ in range(4)))
    Pruner(nn.Linear(64, 64)).prune(0.5)  # first use: code and workspaces
    before = peak()
    Pruner(model).prune(0.9)
    print(peak() - before, sum(int((l.weight == 0).sum()) for l in model))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    extra, count = map(int, done.stdout.split())
    assert count == 90_000_000
    assert extra <= 1.2 * 400e6


# ---- criteria


def test_global_ranks_over_layers_and_layer_within_each():
    def model():
        layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        layers[0].weight.data.uniform_(0.01, 0.02)
        layers[1].weight.data.uniform_(1, 2)
        return layers

    with pytest.warns(UserWarning, match=r"emptied layer '0\.weight'"):
        together = pruned(model(), 0.5)
    assert not together.masks["0.weight"].any() and together.masks["1.weight"].all()
    alone = pruned(model(), 0.5, scope="layer")
    assert [zeros(layer.weight) for layer in alone.model] == [8, 8]


def test_row_scope_prunes_each_output_row_alike():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(10, 4))
    pruned(model, 0.7, scope="row")
    assert (model[0].weight == 0).flatten(1).sum(1).tolist() == [19] * 6
    assert (model[1].weight == 0).sum(1).tolist() == [7] * 4


def test_magnitude_goes_by_absolute_value():
    model = nn.Linear(4, 1)
    model.weight.data = torch.tensor([[-5.0, 1.0, -0.1, 0.2]])
    pruned(model, 2)
    assert model.weight.tolist() == [[-5.0, 1.0, 0.0, 0.0]]


def test_random_repeats_with_its_seed_and_differs_with_another():
    def mask(seed):
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        return pruned(model, 0.5, criterion=Random(seed)).masks

    first, again, other = mask(1), mask(1), mask(2)
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.weight"], first["1.weight"])
    assert sum(zeros(m) for m in first.values()) == 400


def test_taylor_sums_absolute_products_over_batches():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0, -3.0]])
    batches = [torch.tensor([[1.0, -2.0, 0.1]]), torch.tensor([[-1.0, 2.0, 0.1]])]
    model.weight.grad = torch.full((1, 3), 7.0)
    criterion = taylor(model, batches, lambda net, x: net(x).sum())
    # The products of the two batches cancel in sum; their absolute values do not.
    assert criterion.scores["weight"].tolist() == [[2.0, 8.0, pytest.approx(0.6)]]
    assert model.weight.grad.tolist() == [[7.0, 7.0, 7.0]]
    pruned(model, 1, criterion=criterion)
    assert model.weight.tolist() == [[1.0, 2.0, 0.0]]


def test_taylor_without_gradients_is_refused():
    with pytest.raises(ValueError, match=r"gradients for 'weight'.*accumulate"):
        pruned(nn.Linear(2, 2), 0.5, criterion="taylor")
    with pytest.raises(ValueError, match="at least one batch"):
        taylor(nn.Linear(2, 2), [], lambda net, x: net(x).sum())
    with pytest.raises(ValueError, match="taylor"):
        Pruner(nn.Linear(2, 2)).accumulate()


def test_threshold_takes_absolute_values_and_includes_the_limit():
    model = nn.Linear(100, 100)
    nn.init.normal_(model.weight)
    Pruner(model).threshold(0.1)
    assert 0.06 < zeros(model.weight) / 10_000 < 0.10  # 8% of N(0, 1), not 54%
    exact = nn.Linear(3, 1)
    exact.weight.data = torch.tensor([[-0.5, 0.25, 1.0]])
    Pruner(exact).threshold(0.5)
    assert exact.weight.tolist() == [[0.0, 0.0, 1.0]]


def test_thresholds_by_layer_leave_the_others():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for layer in model:
        nn.init.constant_(layer.weight, 0.3)
    with pytest.warns(UserWarning, match=r"emptied layer '1\.weight'"):
        Pruner(model).threshold({"1": 0.5})
    assert zeros(model[0].weight) == 0 and zeros(model[1].weight) == 16
    with pytest.raises(ValueError, match="'9'"):
        Pruner(model).threshold({"9": 0.5})
    with pytest.raises(ValueError, match="threshold >= 0"):
        Pruner(model).threshold(-0.1)


def test_custom_masks_by_layer_name_and_refusals():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    pruner = Pruner(model)
    pruner.custom({"1": torch.tensor([[1, 0], [1, 1]])})
    assert model[1].weight[0, 1] == 0 and zeros(model[1].weight) == 1
    with pytest.raises(ValueError, match="shape"):
        pruner.custom({"1": torch.ones(3)})
    with pytest.raises(ValueError, match="'typo'"):
        pruner.custom({"typo": torch.ones(2, 2)})


# ---- structures

SHAPES = {
    "linear": lambda: nn.Linear(10, 7),
    "conv1d": lambda: nn.Conv1d(6, 5, 3),
    "conv2d": lambda: nn.Conv2d(6, 8, 3),
    "grouped": lambda: nn.Conv2d(8, 8, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 8, 3),
    "lstm": lambda: nn.LSTM(6, 4),
}


STRUCTURES = [
    *(Filters(1), Filters(2), Channels(2)),
    *(Block(height, width) for height, width in ((4, 1), (1, 4), (16, 1), (3, 2))),
]


@pytest.mark.filterwarnings("ignore:pruning emptied")  # the smallest layers have two units
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("amount", [0.3, 0.5, 2])
def test_structures_prune_whole_units_and_count_them_exactly(shape, structure, amount):
    pruner = Pruner(SHAPES[shape](), structure=structure, scope="layer")
    views = {t.name: t.canonical(pruner.masks[t.name]) for t in pruner.targets}
    before = {name: int(structure.alive(view).sum()) for name, view in views.items()}
    if amount > min(before.values()):
        with pytest.raises(ValueError, match="what is left to prune"):
            pruner.prune(amount)
        return
    pruner.prune(amount)
    for name, view in views.items():
        alive = structure.alive(view)
        assert int(alive.sum()) == before[name] - count_of(amount, before[name])
        assert torch.equal(view, structure.expand(alive, view.shape)), "a unit is pruned in part"


def test_the_units_with_the_smallest_norm_go():
    model = nn.Linear(4, 4, bias=False)
    model.weight.data = torch.tensor([[3.0, 0, 0, 0], [2, 2, 0, 0], [1, 1, 1, 1], [9, 9, 9, 9]])
    assert zeros(pruned(nn_copy(model), 1, structure=Filters(1)).masks["weight"][0]) == 4
    assert zeros(pruned(nn_copy(model), 1, structure=Filters(2)).masks["weight"][2]) == 4
    assert zeros(pruned(nn_copy(model), 1, structure=Filters(float("inf"))).masks["weight"][2]) == 4
    assert zeros(pruned(nn_copy(model), 1, structure=Channels(1)).masks["weight"][:, 2]) == 4


def nn_copy(model):
    clone = nn.Linear(4, 4, bias=False)
    clone.weight.data = model.weight.data.clone()
    return clone


def test_dim_zero_is_filters_and_dim_one_input_channels():
    filters = prune.ln_structured(nn.Conv2d(4, 6, 3), "weight", 2, n=2, dim=0)
    channels = prune.ln_structured(nn.Conv2d(4, 6, 3), "weight", 1, n=2, dim=1)
    assert int((filters.weight == 0).all(dim=3).all(dim=2).all(dim=1).sum()) == 2
    assert int((channels.weight == 0).all(dim=3).all(dim=2).all(dim=0).sum()) == 1


def test_transposed_convolutions_have_their_filters_in_dim_one():
    model = nn.ConvTranspose2d(4, 6, 3)
    pruned(model, 2, structure="filters")
    assert int((model.weight == 0).flatten(2).all(dim=2).all(dim=0).sum()) == 2


@pytest.mark.parametrize("nm", [(2, 4), (1, 4), (4, 8), (1, 8), (3, 4)])
def test_n_of_m_keeps_n_in_every_m_input_channels(nm):
    model = nn.Sequential(nn.Linear(32, 8), nn.Conv2d(16, 8, 3))
    pruned(model, None, structure=NM(*nm))
    linear = (model[0].weight != 0).reshape(-1, nm[1]).sum(1)
    conv = (model[1].weight != 0).movedim(1, -1).reshape(-1, nm[1]).sum(1)
    assert set(linear.tolist()) == set(conv.tolist()) == {nm[0]}
    weight = torch.tensor([[1.0, -4, 3, 2]])
    small = nn.Linear(4, 1)
    small.weight.data = weight.clone()
    pruned(small, None, structure="2:4")
    assert small.weight.tolist() == [[0, -4, 3, 0]]


def test_n_of_m_pads_channels_that_m_does_not_divide():
    model = nn.Linear(6, 3)
    pruned(model, None, structure="2:4")
    assert (model.weight[:, :4] != 0).sum(1).tolist() == [2, 2, 2]
    assert (model.weight[:, 4:] != 0).sum(1).tolist() == [2, 2, 2]
    few = nn.Conv2d(3, 4, 3)
    pruned(few, None, structure="1:4")
    assert set((few.weight != 0).sum(1).flatten().tolist()) == {1}


def test_tfmots_m_by_n_counts_zeros():
    model = nn.Linear(8, 4)
    pruned(model, None, structure=NM.from_zeros(3, 4))
    assert (model.weight == 0).reshape(-1, 4).sum(1).tolist() == [3] * 8


@pytest.mark.parametrize("structure", ["2:4", "4x1", "1x4", "16x1", "filters"])
def test_what_is_pruned_is_what_conversion_detects(structure):
    model = nn.Linear(64, 64)
    Pruner(model, structure=structure).prune(None if structure == "2:4" else 0.5)
    expected = {"filters": "channel: 32 rows", "2:4": "2:4"}.get(structure, f"block {structure}")
    assert str(detect_pattern(model.weight)) == expected


@pytest.mark.parametrize("name", ["3x", "0:4", "4:2", "0x4", "rows"])
def test_structures_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match=r"expected .* got .* try"):
        Pruner(nn.Linear(4, 4), structure=name)


# ---- torch.nn.utils.prune's functions


@pytest.mark.parametrize("amount", [0.5, 0.37, 1, 20])
def test_functions_do_what_torchs_do_where_there_are_no_ties(amount):
    def layer():
        torch.manual_seed(1)
        return nn.Conv2d(6, 8, 3)

    ours, theirs = layer(), layer()
    for _ in range(2):
        prune.l1_unstructured(ours, "weight", amount)
        torch_prune.l1_unstructured(theirs, "weight", amount)
    assert torch.equal(ours.weight_mask, theirs.weight_mask)
    if amount != 20:
        for dim in (0, 1):
            ours, theirs = layer(), layer()
            for _ in range(2):
                prune.ln_structured(ours, "weight", amount, n=2, dim=dim)
                torch_prune.ln_structured(theirs, "weight", amount, n=2, dim=dim)
            assert torch.equal(ours.weight_mask, theirs.weight_mask)


def test_global_function_does_what_torchs_does():
    def layers():
        torch.manual_seed(2)
        return [nn.Linear(9, 8), nn.Linear(8, 7)]

    ours, theirs = layers(), layers()
    for _ in range(2):
        prune.global_unstructured([(layer, "weight") for layer in ours], 0.4)
        torch_prune.global_unstructured(
            [(layer, "weight") for layer in theirs], torch_prune.L1Unstructured, amount=0.4
        )
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.weight_mask, other.weight_mask)


def test_random_functions_count_exactly_and_remove_makes_it_permanent():
    layer = nn.Linear(10, 10)
    prune.random_unstructured(layer, "weight", 37, seed=5)
    prune.random_structured(layer, "weight", 2, dim=0, seed=5)
    assert prune.is_pruned(layer) and zeros(layer.weight_mask) >= 37
    rows = int((layer.weight_mask == 0).all(dim=1).sum())
    assert rows == 2
    prune.remove(layer, "weight")
    assert not prune.is_pruned(layer) and list(layer.state_dict()) == ["bias", "weight"]
    assert int((layer.weight == 0).all(dim=1).sum()) == 2


def test_functions_refuse_a_third_dim_and_a_negative_threshold():
    with pytest.raises(ValueError, match="dim 0"):
        prune.ln_structured(nn.Conv2d(2, 2, 3), "weight", 1, dim=2)
    with pytest.raises(ValueError, match="threshold >= 0"):
        prune.threshold_unstructured(nn.Linear(2, 2), "weight", -1)

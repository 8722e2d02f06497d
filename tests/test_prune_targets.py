"""Which weights are pruned: types, names, tied weights, masks that a model already carries."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune
from transformers.pytorch_utils import Conv1D

from sparseinfer.prune import Filters, OneShot, PolynomialDecay, Pruner


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4)])
        self.act = nn.PReLU()
        self.convs = nn.ModuleList(
            [
                nn.Conv1d(4, 4, 3),
                nn.Conv2d(4, 4, 3),
                nn.Conv3d(4, 4, 3),
                nn.ConvTranspose2d(4, 4, 3),
            ]
        )
        self.rnn, self.cell = nn.LSTM(4, 4, num_layers=2), nn.GRUCell(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.other = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
        self.deep = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))


def test_linear_convolution_recurrent_and_attention_weights_and_nothing_else():
    assert list(Pruner(Everything()).masks) == [
        "convs.0.weight", "convs.1.weight", "convs.2.weight", "convs.3.weight",
        "rnn.weight_hh_l0", "rnn.weight_hh_l1", "rnn.weight_ih_l0", "rnn.weight_ih_l1",
        "cell.weight_hh", "cell.weight_ih", "attention.in_proj_weight",
        "attention.out_proj.weight", "other.q_proj_weight", "other.k_proj_weight",
        "other.v_proj_weight", "other.out_proj.weight", "deep.0.0.weight",
    ]  # fmt: skip


def test_norms_embeddings_and_biases_are_never_touched():
    model = Everything()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruner = Pruner(model, scope="layer")
    pruner.prune(0.9)
    for name, tensor in model.state_dict().items():
        if name not in pruner.masks:
            assert torch.equal(tensor, before[name])
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (dict(targets=nn.Linear), ["0.weight", "2.0.weight", "3.weight"]),
        (dict(targets=[nn.Conv2d]), ["1.weight"]),
        (dict(targets="2.*"), ["2.0.weight"]),
        (dict(targets=["0", "3.weight"]), ["0.weight", "3.weight"]),
        (dict(ignore=["0", "2.*"]), ["1.weight", "3.weight"]),
        (dict(ignore=nn.Linear), ["1.weight"]),
        (dict(targets=nn.Linear, ignore="3"), ["0.weight", "2.0.weight"]),
    ],
)
def test_targets_and_ignore_by_type_name_and_glob(options, names):
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Conv2d(2, 2, 1), nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    )
    pruner = Pruner(model, **options)
    assert list(pruner.masks) == names
    assert len(pruner.masks) + len(pruner.skipped) == 4


def test_a_model_that_is_itself_a_layer_has_a_name_without_a_dot():
    assert list(Pruner(nn.Linear(2, 2)).masks) == ["weight"]


def test_unknown_names_list_the_near_ones():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    for option in ("targets", "ignore"):
        with pytest.raises(ValueError, match=rf"{option}.*'encodr'.*try one of \['encoder'"):
            Pruner(model, **{option: ["encodr"]})
    with pytest.raises(ValueError, match="Embedding"):
        Pruner(model, targets=nn.Embedding)


def test_nothing_to_prune_is_an_error():
    with pytest.raises(ValueError, match="got none"):
        Pruner(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="expected something to prune"):
        Pruner(nn.Sequential(nn.Linear(2, 2)), ignore="*")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6)
        self.b.weight = self.a.weight
        self.head.weight = self.embed.weight


def test_tied_weights_have_one_mask_and_stay_tied():
    model = Tied()
    pruner = Pruner(model)
    pruner.prune(0.5)
    assert list(pruner.masks) == ["a.weight"]
    assert model.a.weight is model.b.weight and int((model.a.weight == 0).sum()) == 8
    assert Pruner(model, targets="b").masks.keys() == {"a.weight"}
    with pytest.raises(ValueError, match="something to prune"):
        Pruner(model, ignore="b")


def test_a_weight_tied_to_an_embedding_is_left_out_and_refused_by_name():
    pruner = Pruner(Tied())
    assert "embed.weight" in pruner.skipped["head.weight"]
    with pytest.raises(ValueError, match=r"'head\.weight'.*'embed\.weight'"):
        Pruner(Tied(), targets="head")


def test_a_module_found_twice_counts_once():
    layer = nn.Linear(4, 4)
    pruner = Pruner(nn.Sequential(layer, nn.ReLU(), layer))
    assert list(pruner.masks) == ["0.weight"]
    assert list(Pruner(nn.Sequential(layer, nn.ReLU(), layer), targets="2").masks) == ["0.weight"]


def test_ratios_by_layer_take_the_first_pattern_that_fits():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    pruner = Pruner(model, ratios={"1": 0.2, "*": 0.7}, schedule=0.9)
    pruner.step()
    assert [int((layer.weight == 0).sum()) for layer in model] == [70, 20, 70]


def test_without_a_schedule_layers_outside_the_ratios_stay_dense():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    pruner = Pruner(model, ratios={"0": 0.5})
    pruner.step()
    assert [int((layer.weight == 0).sum()) for layer in pruner.finalize()] == [50, 0]


def test_ratios_grow_in_proportion_to_the_schedule():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    schedule = PolynomialDecay(0.0, 0.8, 0, 2, power=1, frequency=1)
    pruner = Pruner(model, None, schedule, ratios={"0": 0.4})
    seen = []
    for _ in range(3):
        pruner.step()
        seen.append([int((layer.weight == 0).sum()) for layer in model])
    assert seen == [[0, 0], [20, 40], [40, 80]]


@pytest.mark.parametrize("ratios", [{"typo": 0.5}, {"0": 1.0}, {"0": -0.1}])
def test_ratios_that_mean_nothing_are_refused(ratios):
    with pytest.raises(ValueError, match=r"expected .* got .* try"):
        Pruner(nn.Sequential(nn.Linear(2, 2)), ratios=ratios)


def test_a_pruned_filter_emits_its_bias_unless_the_bias_is_masked():
    for mask_bias in (False, True):
        model = nn.Conv2d(2, 4, 1)
        nn.init.ones_(model.bias)
        pruner = Pruner(model, structure=Filters(), mask_bias=mask_bias)
        pruner.prune(1)
        gone = ~pruner.masks["weight"].flatten(1).any(dim=1)
        output = model(torch.randn(1, 2, 1, 1)).flatten()
        assert output[gone].tolist() == [0.0 if mask_bias else 1.0]
        assert int((model.bias == 0).sum()) == int(mask_bias)
    with pytest.raises(ValueError, match="filters"):
        Pruner(nn.Linear(2, 2), mask_bias=True)


def test_masked_biases_hold_through_training():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(model, optimizer, 0.5, structure="filters", mask_bias=True, targets="0")
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 2, 1, 1)).sub(1).square().sum().backward()
        optimizer.step()
        pruner.step()
        gone = ~pruner.masks["0.weight"].flatten(1).any(dim=1)
        assert int(gone.sum()) == 3 and torch.count_nonzero(model[0].bias[gone]) == 0
        assert torch.count_nonzero(optimizer.state[model[0].bias]["momentum_buffer"][gone]) == 0
        assert torch.count_nonzero(model[0].bias[~gone]) == 3


def test_gpt2s_linear_layers_have_their_outputs_in_dim_one():
    layer = Conv1D(6, 4)  # nf, nx: the weight is [4, 6]
    nn.init.normal_(layer.weight)
    pruner = Pruner(nn.Sequential(layer), structure="filters")
    pruner.prune(2)
    assert int((layer.weight == 0).all(dim=0).sum()) == 2
    other = Conv1D(6, 8)
    pruner = Pruner(nn.Sequential(other), structure="2:4")
    pruner.prune()
    assert set((other.weight != 0).reshape(2, 4, 6).sum(dim=1).flatten().tolist()) == {2}


# ---- masks that a model carries


def test_torchs_masks_are_taken_over_and_the_parameter_stays():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    original, mask = model[0].weight_orig, model[0].weight_mask.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(model, optimizer)
    assert model[0].weight is original and torch.equal(pruner.masks["0.weight"], mask != 0)
    for _ in range(3):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    assert int((model[0].weight == 0).sum()) == 32
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    pruner.prune(0.5)
    assert int((model[0].weight == 0).sum()) + int((model[1].weight == 0).sum()) == 32 + 48


class Mask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def test_mask_parametrizations_are_taken_over():
    model = nn.Sequential(nn.Linear(4, 4))
    mask = (torch.arange(16).reshape(4, 4) % 2).float()
    parametrize.register_parametrization(model[0], "weight", Mask(mask))
    original = model[0].parametrizations.weight.original
    pruner = Pruner(model)
    assert model[0].weight is original and not parametrize.is_parametrized(model[0])
    assert torch.equal(pruner.masks["0.weight"], mask != 0)
    assert int((model[0].weight == 0).sum()) == 8


def test_other_parametrizations_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"'1\.weight'.*weight_norm"):
        Pruner(model)


def test_recurrent_masks_are_taken_over():
    model = nn.LSTM(4, 4)
    torch_prune.random_unstructured(model, "weight_hh_l0", 0.5)
    pruner = Pruner(model)
    assert int((~pruner.masks["weight_hh_l0"]).sum()) == 32
    model(torch.randn(3, 1, 4))


def test_an_optimizer_of_another_model_is_refused():
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds none"):
        Pruner(nn.Linear(2, 2), other, OneShot(0.5))


@pytest.mark.parametrize(
    "options",
    [
        dict(scope="block"),
        dict(criterion="hessian"),
        dict(schedule=90),
        dict(schedule=1.0),
        dict(structure="4x1", scope="row"),
    ],
)
def test_options_that_do_not_exist_are_refused(options):
    with pytest.raises(ValueError, match=r"expected .*got"):
        Pruner(nn.Linear(2, 2), **options)


def test_an_emptied_layer_is_warned_of_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.data.mul_(1e-3)
    pruner = Pruner(model, None, PolynomialDecay(0.5, 0.6, 0, 2, frequency=1))
    with pytest.warns(UserWarning, match=r"emptied layer '0\.weight'") as caught:
        pruner.step()
        pruner.step()
    assert len(caught) == 1

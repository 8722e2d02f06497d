"""Pruning a state_dict without its model: what is taken, and how much of it."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from sparseinfer.checkpoints import (
    CheckpointError,
    Recipe,
    choose,
    load_sparse,
    prune_checkpoint,
    prune_state_dict,
)
from sparseinfer.checkpoints.plain import make_plain
from sparseinfer.formats.patterns import detect_pattern
from sparseinfer.prune.structures import parse_structure


class Zoo(nn.Module):
    """One of each kind of layer."""

    def __init__(self):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, 8, 4, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.image_norm = nn.LayerNorm([8, 4, 4])
        self.embed_tokens = nn.Embedding(50, 8)
        self.wpe = nn.Embedding(20, 8)
        self.time_embedding = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
        self.self_attention = nn.MultiheadAttention(8, 2)
        self.rnn = nn.LSTM(8, 8, proj_size=4, bidirectional=True)
        self.cell = nn.GRUCell(8, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.conv1d = nn.Conv1d(8, 8, 3)
        self.fc = nn.Linear(8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.lm_head = nn.Linear(8, 50, bias=False)
        self.lm_head.weight = self.embed_tokens.weight


TAKEN = {
    "patch_embedding.weight", "time_embedding.weight", "attention.q_proj_weight",
    "attention.k_proj_weight", "attention.v_proj_weight", "attention.out_proj.weight",
    "self_attention.in_proj_weight", "self_attention.out_proj.weight", "rnn.weight_ih_l0",
    "rnn.weight_hh_l0", "rnn.weight_hr_l0", "rnn.weight_ih_l0_reverse", "rnn.weight_hh_l0_reverse",
    "rnn.weight_hr_l0_reverse", "cell.weight_ih", "cell.weight_hh", "up.weight", "conv1d.weight",
    "fc.weight",
}  # fmt: skip


def reasons(state, **patterns):
    return {choice.name: (choice.taken, choice.reason) for choice in choose(state, **patterns)}


# --- what is taken


def test_only_weights_of_layers_are_taken():
    found = reasons(Zoo().state_dict())
    assert {name for name, (taken, _) in found.items() if taken} == TAKEN
    for name, word in {
        "bn1.weight": "norm with statistics",
        "image_norm.weight": "norm by its bias",
        "embed_tokens.weight": "embedding by its name",
        "wpe.weight": "embedding by its name",
        "lm_head.weight": "tied to the embedding embed_tokens.weight",
        "fc.bias": "one dimension",
        "cls_token": "not named as a layer's weight",
        "bn1.running_var": "norm with statistics",
        "bn1.num_batches_tracked": "no magnitudes to rank",
    }.items():
        assert word in found[name][1]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer_norm.weight", (4, 4)), ("ln_1.weight", (4, 4)), ("LayerNorm.weight", (4, 4)),
        ("h.0.ln_f.weight", (4, 4)), ("encoder.norm1.weight", (4, 4)), ("bn2.weight", (4, 4)),
        ("tok_embeddings.weight", (4, 4)), ("wte.weight", (4, 4)), ("shared.weight", (4, 4)),
        ("embeddings.word_embeddings.weight", (4, 4)), ("0.weight", (9000, 4)),
        ("relative_attention_bias.weight", (32, 8)), ("fc.weight", (4,)), ("fc.weight_v", (4, 4)),
        ("running_mean", (4, 4)), ("fc.weight", (0, 4)),
    ],
)  # fmt: skip
def test_what_is_left(name, shape):
    found = reasons({name: torch.ones(shape), "other.weight": torch.ones(4, 4)})
    assert not found[name][0] and found["other.weight"][0]


@pytest.mark.parametrize(
    "name",
    ["weight", "gnn.weight", "normalize_inputs.weight", "h.0.attn.c_attn.weight", "linear.weight"],
)
def test_what_is_taken_though_it_may_look_otherwise(name):
    assert reasons({name: torch.ones(4, 4)})[name][0]


def test_a_wide_layer_with_a_bias_is_no_vocabulary():
    state = {"fc.weight": torch.ones(9000, 4), "fc.bias": torch.ones(9000)}
    assert reasons(state)["fc.weight"][0]


def test_an_output_layer_is_compared_with_one_table_at_most(monkeypatch):
    def table(**changed):
        made = torch.arange(1.0, 33.0).reshape(8, 4)
        for place, value in changed.items():
            made[int(place[1:]), 0] = value
        return made

    # A row for padding begins each table, and what differs lies behind it.
    state = {f"m{i}.embed.weight": table(r0=0, r5=i) for i in range(20)}
    state |= {f"m{i}.lm_head.weight": table(r0=0, r5=i) for i in (3, 7, 20)}
    compared = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda *pair: compared.append(pair) or equal(*pair))
    found = reasons({**state, "fc.weight": torch.ones(2, 2)})
    assert found["m3.lm_head.weight"] == (False, "tied to the embedding m3.embed.weight")
    assert found["m7.lm_head.weight"] == (False, "tied to the embedding m7.embed.weight")
    assert found["m20.lm_head.weight"] == (True, "a layer's weight")
    assert len(compared) == 2


def test_an_output_layer_equal_to_an_embedding_is_tied_to_it():
    table = torch.randn(10, 4)
    state = {"wte.weight": table, "lm_head.weight": table.clone(), "fc.weight": torch.ones(4, 4)}
    assert reasons(state)["lm_head.weight"] == (False, "tied to the embedding wte.weight")
    state["lm_head.weight"] = torch.randn(10, 4)
    assert reasons(state)["lm_head.weight"][0]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_other_dtypes_are_left(dtype):
    state = {"q.weight": torch.zeros(4, 4).to(dtype), "fc.weight": torch.ones(2, 2)}
    assert reasons(state)["q.weight"] == (False, "no magnitudes to rank")


def test_include_and_exclude():
    state = Zoo().state_dict()
    taken = {n for n, (taken, _) in reasons(state, include=["rnn", "fc.weight"]).items() if taken}
    assert taken == {name for name in TAKEN if name.startswith(("rnn", "fc"))}
    taken = {n for n, (taken, _) in reasons(state, exclude=["*attention*", "rnn"]).items() if taken}
    assert taken == {n for n in TAKEN if not n.startswith("rnn") and "attention" not in n}


def test_include_overrides_a_guess_but_not_a_fact():
    state = Zoo().state_dict()
    found = reasons(state, include=["embed_tokens", "fc"])
    assert found["embed_tokens.weight"] == (True, "--include, though an embedding by its name")
    # A pattern that finds weights restricts; the norm and the embedding beside them stay left.
    assert not reasons(state, include=["*"])["wpe.weight"][0]
    for fact in ("bn1", "image_norm", "fc.bias"):
        with pytest.raises(CheckpointError, match="expected weights to prune, got none"):
            choose(state, include=[fact])


def test_a_pattern_without_a_match_is_refused():
    for patterns in ({"include": ["absent"]}, {"exclude": ["absent"]}):
        with pytest.raises(CheckpointError, match=r"got 'absent'; try one of fc\.weight"):
            choose({"fc.weight": torch.ones(2, 2)}, **patterns)


@pytest.mark.parametrize("state", [{"fc.bias": torch.ones(3)}, {"note": "text"}])
def test_nothing_prunable(state):
    with pytest.raises(CheckpointError, match="got none"):
        prune_state_dict(state, Recipe(amount=0.5))


# --- how much


def weights(**shapes):
    return {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}


def zeros(state):
    return {name: int((tensor == 0).sum()) for name, tensor in state.items()}


def test_threshold_takes_the_absolute_value_and_equality():
    state = {"fc.weight": torch.tensor([[0.1, -0.1, 0.11], [-0.11, -5.0, 0.0]])}
    prune_state_dict(state, Recipe("threshold", 0.1))
    assert state["fc.weight"].tolist() == torch.tensor([[0, 0, 0.11], [-0.11, -5, 0]]).tolist()
    state = {"fc.weight": torch.randn(200, 200)}
    result = prune_state_dict(state, Recipe("threshold", 0.1))
    assert result.sparsity == pytest.approx(math.erf(0.1 / math.sqrt(2)), abs=0.01)


def test_global_and_layer_scope():
    state = {"a.weight": torch.full((4, 4), 0.1), "b.weight": torch.full((4, 4), 5.0)}
    copies = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.warns(UserWarning, match="emptied a.weight"):
        prune_state_dict(state, Recipe(amount=0.5))
    assert zeros(state) == {"a.weight": 16, "b.weight": 0}
    prune_state_dict(copies, Recipe(amount=0.5, scope="layer"))
    assert zeros(copies) == {"a.weight": 8, "b.weight": 8}


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_a_fraction_rounds_as_torch_does(rows, columns, amount, seed):
    layer = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        layer.weight.copy_(
            torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
        )
    state = {"fc.weight": layer.weight.detach().clone()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune_state_dict(state, Recipe(amount=amount))
    assert zeros(state)["fc.weight"] == round(amount * rows * columns)
    if 0 < amount:
        prune.l1_unstructured(layer, "weight", amount)
        assert torch.equal(state["fc.weight"], layer.weight)


def test_a_count_is_a_count():
    state = weights(a=(4, 4), b=(3, 3))
    for count in (1, 12):
        prune_state_dict(state, Recipe(amount=count))
        assert sum(zeros(state).values()) == count


def test_zeros_already_there_count():
    state = weights(fc=(10, 10))
    prune_state_dict(state, Recipe(amount=0.5))
    before = state["fc.weight"].clone()
    prune_state_dict(state, Recipe(amount=0.5))
    assert torch.equal(state["fc.weight"], before)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_random_is_exact_and_follows_its_seed(scope):
    def pruned(seed):
        state = weights(a=(40, 40), b=(10, 10))
        prune_state_dict(state, Recipe("random", 0.3, scope, seed=seed))
        return {name: tensor == 0 for name, tensor in state.items()}

    first, same, other = pruned(1), pruned(1), pruned(2)
    assert sum(int(mask.sum()) for mask in first.values()) == 510
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["a.weight"], other["a.weight"])
    if scope == "layer":
        assert int(first["b.weight"].sum()) == 30


@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize("shape", [(8, 16), (6, 4, 3, 3)])
def test_two_in_four(method, shape):
    state = weights(fc=shape)
    original = state["fc.weight"].clone()
    prune_state_dict(state, Recipe(method, structure="2:4"))
    kept = state["fc.weight"].movedim(1, -1).reshape(-1, 4) != 0
    assert bool((kept.sum(1) == 2).all())
    assert str(detect_pattern(state["fc.weight"])) == "2:4"
    if method == "magnitude":
        largest = original.movedim(1, -1).reshape(-1, 4).abs().topk(2).indices
        assert bool(kept.gather(1, largest).all())


def test_channels_beyond_the_last_whole_group_are_a_group_as_if_padded():
    state = weights(fc=(3, 7), conv=(4, 3, 2, 2), depthwise=(6, 1, 3, 3))
    prune_state_dict(state, Recipe(structure="1:4"))
    assert (state["fc.weight"][:, 4:] != 0).sum(1).tolist() == [1, 1, 1]
    assert set((state["conv.weight"] != 0).sum(1).flatten().tolist()) == {1}
    assert zeros(state)["depthwise.weight"] == 0


def test_a_weight_in_which_n_of_m_finds_nothing_is_left_with_that_reason():
    state = {**weights(depthwise=(6, 1, 3, 3), two=(4, 2, 3), fc=(4, 8)), "scale": torch.ones(3)}
    rows = {row.name: row for row in prune_state_dict(state, Recipe(structure="2:4")).rows}
    assert rows["depthwise.weight"].reason == "1 input channel, and 2:4 keeps 2"
    assert rows["two.weight"].reason == "2 input channels, and 2:4 keeps 2"
    assert [name for name, row in rows.items() if row.pruned] == ["fc.weight"]


def test_a_layer_that_loses_over_99_percent_is_warned_of():
    state = weights(a=(40, 40), b=(40, 40))
    state["a.weight"].view(-1)[5:] *= 1e-6
    with pytest.warns(UserWarning, match=r"left 5 of the 1,600 weights of a\.weight; try"):
        found = prune_state_dict(state, Recipe(amount=1595))
    assert len(found.warnings) == 1


@pytest.mark.parametrize(("structure", "pattern"), [("4x1", "block 4x1"), ("1x4", "block 1x4")])
def test_blocks(structure, pattern):
    state = weights(fc=(32, 36), conv=(8, 4, 3, 3))
    result = prune_state_dict(state, Recipe(amount=0.75, structure=structure))
    assert str(detect_pattern(state["fc.weight"])) == pattern
    assert result.sparsity == pytest.approx(0.75)


def test_the_weakest_blocks_go_also_at_the_edges():
    weight = torch.ones(5, 2)
    weight[4] = 0.5
    state = {"fc.weight": weight}
    prune_state_dict(state, Recipe(amount=0.5, structure="4x1"))
    assert weight.tolist() == [[1, 1]] * 4 + [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept_and_compete(dtype):
    state = {"a.weight": torch.full((2, 2), 0.5, dtype=dtype), "b.weight": torch.ones(2, 2)}
    with pytest.warns(UserWarning, match="emptied a.weight"):
        prune_state_dict(state, Recipe(amount=0.5))
    assert state["a.weight"].dtype is dtype and zeros(state) == {"a.weight": 4, "b.weight": 0}


def test_tied_tensors_stay_tied_and_count_once():
    weight = torch.arange(1.0, 17).reshape(4, 4)
    state = {"a.weight": weight, "b.weight": weight, "c.weight": torch.arange(1.0, 17).view(4, 4)}
    prune_state_dict(state, Recipe(amount=8))
    assert state["a.weight"].data_ptr() == state["b.weight"].data_ptr()
    assert zeros(state) == {"a.weight": 4, "b.weight": 4, "c.weight": 4}


def test_a_weight_tied_to_an_embedding_is_not_pruned():
    table = torch.randn(10, 4)
    state = {"wte.weight": table, "anything.weight": table, "fc.weight": torch.randn(4, 4)}
    prune_state_dict(state, Recipe(amount=0.5))
    assert zeros(state) == {"wte.weight": 0, "anything.weight": 0, "fc.weight": 8}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["magnitude", "threshold", "random"])
def test_nan_and_infinity_are_refused_before_anything_changes(method, bad):
    state = weights(a=(2, 2), b=(2, 2))
    state["b.weight"][0, 0] = bad
    with pytest.raises(CheckpointError, match=r"b\.weight: .*got 1 NaN or Inf; try --exclude b"):
        prune_state_dict(state, Recipe(method, 0.5))
    assert zeros(state) == {"a.weight": 0, "b.weight": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": 1.0}, "0 <= amount < 1"),
        ({"amount": 90.0}, "0 <= amount < 1"),
        ({"amount": -0.1}, "0 <= amount < 1"),
        ({"amount": math.nan}, "0 <= amount < 1"),
        ({"amount": -1}, "a count of 0 or more"),
        ({}, "expected an --amount, got none"),
        ({"amount": -0.1, "method": "threshold"}, "a threshold of 0 or more"),
        ({"amount": math.inf, "method": "threshold"}, "a threshold of 0 or more"),
        ({"amount": 0.5, "method": "taylor"}, "expected a method of magnitude"),
        ({"amount": 0.5, "scope": "model"}, "expected a scope of global"),
        ({"amount": 0.5, "structure": "2:4"}, "expected no --amount with 2:4"),
        ({"amount": 0.5, "structure": "4:2"}, "expected a structure such as"),
        ({"amount": 0.5, "structure": "0x4"}, "expected a structure such as"),
        ({"amount": 0.5, "structure": "rows"}, "expected a structure such as"),
        ({"method": "threshold", "structure": "2:4"}, "magnitude or random with 2:4"),
        ({"method": "threshold", "structure": "4x1", "amount": 1}, "unstructured with threshold"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be(arguments, message):
    with pytest.raises(CheckpointError, match=message):
        Recipe(**arguments)


@pytest.mark.parametrize(("scope", "count"), [("global", 20), ("layer", 4)])
def test_a_count_of_all_weights_is_refused(scope, count):
    state = weights(a=(4, 4), b=(2, 2))
    with pytest.raises(CheckpointError, match=f"expected a count below the {count} weights"):
        prune_state_dict(state, Recipe(amount=count, scope=scope))
    assert sum(zeros(state).values()) == 0


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(amount=0.5),
        Recipe(amount=0.5, scope="layer"),
        Recipe("threshold", 0.1),
        Recipe("random", 0.5),
        Recipe(structure="2:4"),
        Recipe(amount=0.5, structure="4x1"),
    ],
)
def test_the_bar_counts_each_look_at_a_tensor(monkeypatch, recipe):
    seen = {}

    def bar(items, total, title, show):
        seen["total"] = total
        for seen["looks"], item in enumerate(items, 1):
            yield item

    monkeypatch.setattr("sparseinfer.checkpoints.prune.track", bar)
    prune_state_dict(weights(a=(8, 8), b=(4, 4), c=(8, 4)), recipe)
    assert seen["looks"] == seen["total"]


def test_structures_are_written_as_they_are_read():
    for text in ("unstructured", "2:4", "4x1", "filters", "channels"):
        assert str(parse_structure(text)) == text


# --- whole checkpoints


def test_other_entries_are_kept(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    content = {"epoch": 7, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "in.pth")
    prune_checkpoint(tmp_path / "in.pth", Recipe(amount=0.5), tmp_path / "out.pth")
    out = torch.load(tmp_path / "out.pth", weights_only=True)
    assert out["epoch"] == 7 and list(out["model"]) == list(content["model"])
    assert out["model"]._metadata == content["model"]._metadata
    momentum = out["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"])
    assert int((out["model"]["0.weight"] == 0).sum()) == 32
    for name in ("0.bias", "1.weight", "1.running_mean"):
        assert torch.equal(out["model"][name], content["model"][name])


def test_ties_survive_the_file(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "in.pth")
    prune_checkpoint(tmp_path / "in.pth", Recipe(amount=0.5), tmp_path / "out.pth")
    out = torch.load(tmp_path / "out.pth", weights_only=True)
    assert out["0.weight"].data_ptr() == out["1.weight"].data_ptr()


def test_masks_are_applied_and_multiply(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for layer in model:
        prune.random_unstructured(layer, "weight", 0.25)
    prune.random_unstructured(model[0], "bias", 0.5)
    torch.save(model.state_dict(), tmp_path / "masked.pth")
    prune_checkpoint(tmp_path / "masked.pth", Recipe(amount=0.5), tmp_path / "out.pth")
    out = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(out) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.equal(out["0.bias"], model[0].bias)
    assert sum(int((out[f"{i}.weight"] == 0).sum()) for i in (0, 1)) == 64
    for i in (0, 1):
        assert bool((out[f"{i}.weight"][model[i].weight == 0] == 0).all())
    assert (tmp_path / "out.pth").stat().st_size < (tmp_path / "masked.pth").stat().st_size


def test_masked_tied_weights_stay_tied(tmp_path):
    original, mask = torch.randn(4, 4), torch.eye(4)
    pair = {"weight_orig": original, "weight_mask": mask}
    state = {f"{layer}.{name}": value for layer in "ab" for name, value in pair.items()}
    torch.save(state, tmp_path / "model.pth")
    found = load_sparse(tmp_path / "model.pth")
    assert found["a.weight"].data_ptr() == found["b.weight"].data_ptr()
    assert torch.equal(found["a.weight"], original * mask)


def test_parametrizations_of_torch_ao_are_applied():
    from torch.ao.pruning import WeightNormSparsifier

    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    sparsifier = WeightNormSparsifier(sparsity_level=0.5)
    sparsifier.prepare(model, config=[{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    # Its own state_dict leaves the masks out.
    assert reasons(model.state_dict())["0.parametrizations.weight.original"] == (
        False,
        "of a parametrization without its mask (torch.ao: squash_mask before saving)",
    )
    plain = make_plain({**model.state_dict(), **dict(model.named_buffers())})
    assert set(plain.tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.equal(plain.tensors["0.weight"], model[0].weight)
    assert plain.sources == {"0.weight": "parametrization"}


def test_other_parametrizations_are_left_as_they_are():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    state = {f"a.{name}": value for name, value in layer.state_dict().items()}
    found = reasons({**state, "b.weight": torch.ones(2, 2)})
    assert {name for name, (taken, _) in found.items() if taken} == {"b.weight"}


def test_a_mask_of_another_shape_is_refused(tmp_path):
    state = {"a.weight_orig": torch.ones(4, 4), "a.weight_mask": torch.ones(4, 3)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.weight: expected a mask of shape \[4, 4\]"):
        load_sparse(tmp_path / "model.safetensors")


def test_containers_can_be_changed(tmp_path):
    model = nn.Linear(8, 8)
    torch.save({"model": model.state_dict(), "epoch": 1}, tmp_path / "in.pth")
    result = prune_checkpoint(tmp_path / "in.pth", Recipe(amount=0.5), tmp_path / "out.safetensors")
    assert result.warnings == ["safetensors holds tensors only, so this was left out: epoch"]
    prune_checkpoint(tmp_path / "out.safetensors", Recipe(amount=0.5), tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert torch.equal(back["weight"], load_sparse(tmp_path / "out.safetensors")["weight"])


@pytest.mark.parametrize("name", ["out.weights", "out"])
def test_a_name_that_tells_no_container_gets_that_of_the_input(tmp_path, name):
    save_file({"fc.weight": torch.randn(4, 4)}, tmp_path / "in.safetensors")
    prune_checkpoint(tmp_path / "in.safetensors", Recipe(amount=0.5), tmp_path / name)
    assert load_file(tmp_path / name).keys() == {"fc.weight"}


def test_a_folder_of_pickled_shards(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    names = {"a.weight": "pytorch_model-1.bin", "b.weight": "pytorch_model-2.bin"}
    for name, file in names.items():
        torch.save({name: torch.randn(4, 4)}, folder / file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    prune_checkpoint(folder, Recipe(amount=0.5), tmp_path / "out")
    assert sum(zeros(load_sparse(tmp_path / "out")).values()) == 16
    prune_checkpoint(folder, Recipe(amount=0.5), tmp_path / "m.safetensors", format="sparse")
    assert sum(zeros(load_sparse(tmp_path / "m.safetensors")).values()) == 16
    with pytest.raises(CheckpointError, match="expected a folder as output, as the input is one"):
        prune_checkpoint(folder, Recipe(amount=0.5), tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="other than the input, got the same"):
        prune_checkpoint(index, Recipe(amount=0.5), folder)
    prune_checkpoint(index, Recipe(amount=0.25), in_place=True)
    assert sum(zeros(load_sparse(folder)).values()) == 8


def test_shards_keep_their_places(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(1)
    tensors = {"one": {"a.weight": torch.randn(8, 8)}, "two": {"b.weight": torch.randn(4, 4)}}
    for shard, content in tensors.items():
        save_file(content, folder / f"{shard}.safetensors", {"format": "pt", "note": shard})
    index = {
        "metadata": {"total_size": 320},
        "weight_map": {"a.weight": "one.safetensors", "b.weight": "two.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "old.bin").write_text("weights in another container")
    prune_checkpoint(folder, Recipe(amount=0.5), tmp_path / "out")
    names = {path.name for path in folder.iterdir()} - {"old.bin"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert json.loads((tmp_path / "out/model.safetensors.index.json").read_text()) == index
    out = load_sparse(tmp_path / "out")
    assert sum(zeros(out).values()) == 40
    with pytest.raises(CheckpointError, match=r"expected an empty folder or none, got one with"):
        prune_checkpoint(folder, Recipe(amount=0.5), tmp_path / "out")
    prune_checkpoint(folder, Recipe(amount=0.5), in_place=True)
    again = load_sparse(folder)
    assert all(torch.equal(again[name], out[name]) for name in out)
    assert (folder / "old.bin").exists()


# --- real architectures


def architectures():
    """Small models of transformers, random weights."""
    import transformers as hf

    size = {"hidden_size": 32, "intermediate_size": 64}
    size |= {"num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**size, "vocab_size": 100}
    image = {**size, "image_size": 32, "patch_size": 8}
    t5 = hf.T5Config(d_model=32, d_ff=64, num_layers=1, num_heads=4, d_kv=8, vocab_size=100)
    return {
        "BERT": hf.BertForSequenceClassification(hf.BertConfig(**text)),
        "GPT-2": hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=100)),
        "T5": hf.T5ForConditionalGeneration(t5),
        "Llama": hf.LlamaForCausalLM(hf.LlamaConfig(**text)),
        "OPT": hf.OPTForCausalLM(hf.OPTConfig(**text, ffn_dim=64, word_embed_proj_dim=16)),
        "CLIP": hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=image)),
        "ViT": hf.ViTForImageClassification(hf.ViTConfig(**image)),
        "Swin": hf.SwinModel(hf.SwinConfig(image_size=32, embed_dim=16, depths=[1], num_heads=[2])),
        "ResNet": hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])),
        "MobileNetV2": hf.MobileNetV2Model(hf.MobileNetV2Config(depth_multiplier=0.35)),
        "Wav2Vec2": hf.Wav2Vec2Model(
            hf.Wav2Vec2Config(**size, conv_dim=(8,), conv_kernel=(3,), conv_stride=(2,))
        ),
        "Mamba": hf.MambaModel(hf.MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1)),
    }


@pytest.mark.slow
def test_in_real_architectures_exactly_the_layers_weights_are_taken():
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.modules.conv._ConvNd, Conv1D)
    for architecture, model in architectures().items():
        tables = {
            module.weight.data_ptr()
            for module in model.modules()
            if isinstance(module, nn.Embedding)
        }
        expected = {
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, kinds) and module.weight.data_ptr() not in tables
        }
        state = model.state_dict()
        # weight_norm keeps two factors, and no weight that could be pruned.
        expected = {name for name in expected if name in state}
        taken = {choice.name for choice in choose(state) if choice.taken}
        assert taken == expected, architecture


def test_what_is_tied_to_an_excluded_weight_is_left_too() -> None:
    weight = torch.randn(8, 8)
    state = {"a.weight": weight, "b.weight": weight, "c.weight": torch.randn(8, 8)}
    rows = {
        row.name: row for row in prune_state_dict(state, Recipe(amount=0.5, exclude=["a"])).rows
    }
    assert torch.count_nonzero(weight) == 64
    assert not rows["b.weight"].pruned
    assert rows["b.weight"].reason == "tied to a.weight, which --exclude matches"
    assert rows["c.weight"].zeros == 32

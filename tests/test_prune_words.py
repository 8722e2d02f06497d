"""What pruning says: names that pick layers, repr, summary, warnings, imports."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import sparseinfer
from sparseinfer.checkpoints.prunable import choose
from sparseinfer.prune import PolynomialDecay, Pruner, Random, lottery, recover, sensitivity
from sparseinfer.prune.targets import find_targets


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.fc = nn.Linear(4, 4)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList([Block(), Block()])
        self.encoder2 = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6)


def _all_but(*starts):
    names = [target.name for target in find_targets(Model())[0]]
    return [name for name in names if not name.startswith(starts)]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("encoder", ("encoder.",)),
        ("encoder.layer.0", ("encoder.layer.0.",)),
        ("encoder.layer.?", ("encoder.",)),
        ("*.attention", ("encoder.layer.0.attention", "encoder.layer.1.attention")),
        ("encoder.layer.1.fc", ("encoder.layer.1.fc",)),
        ("head.weight", ("head",)),
        ("encode*", ("encoder", "encoder2")),
    ],
)
def test_prefixes_names_and_globs_pick_the_same_in_both_prunes(pattern, left):
    model, wanted = Model(), _all_but(*left)
    assert list(Pruner(model, ignore=pattern).masks) == wanted
    chosen = [choice.name for choice in choose(model.state_dict(), exclude=[pattern])]
    taken = [c.name for c in choose(model.state_dict(), exclude=[pattern]) if c.taken]
    assert taken == [name for name in chosen if name in wanted]
    others = [target.name for target in find_targets(model)[0] if target.name not in wanted]
    assert list(Pruner(model, targets=pattern).masks) == others
    taken = [c.name for c in choose(model.state_dict(), include=[pattern]) if c.taken]
    assert sorted(taken) == sorted(others)


def test_types_of_modules_take_what_lies_within():
    assert list(Pruner(Model(), ignore=Block).masks) == ["encoder2.weight", "head.weight"]
    within = Pruner(Model(), targets=nn.MultiheadAttention).masks
    assert len(within) == 4 and all(".attention." in name for name in within)


def test_ratios_and_thresholds_take_prefixes():
    pruner = Pruner(Model(), ratios={"encoder": 0.5})
    pruner.step()
    counts = {name: int((~mask).sum()) for name, mask in pruner.masks.items()}
    assert all((count > 0) == name.startswith("encoder.") for name, count in counts.items())
    pruner = Pruner(Model())
    with pytest.warns(UserWarning, match=r"emptied layer 'encoder\.layer\.0"):
        pruner.threshold({"encoder.layer.0": 10.0})
    emptied = [name for name, mask in pruner.masks.items() if not mask.any()]
    assert emptied == [name for name in pruner.masks if name.startswith("encoder.layer.0.")]


def test_a_pruner_shows_what_it_does():
    pruner = Pruner(
        Model(), None, PolynomialDecay(0.0, 0.5, 0, 4, frequency=4), ignore="head",
        structure="2:4", criterion=Random(3), scope="layer",
    )  # fmt: skip
    text = repr(pruner)
    parts = (
        "7 weights, 1 left out", "sparsity=0,", "step=0", "PolynomialDecay(", "NM(n=2, m=4)",
        "Random(seed=3)", "'layer'", "holds=False",
    )  # fmt: skip
    assert all(part in text for part in parts), text
    for _ in range(5):
        pruner.step()
    assert "sparsity=0.5," in repr(pruner) and "step=5" in repr(pruner)


def _summarized():
    model = Model()
    model.norm = parametrizations.weight_norm(nn.Linear(4, 4))
    model.encoder2.weight.data.mul_(1e-6)
    pruner = Pruner(model, None, 0.2, ignore=["norm", "encoder.layer.0"])
    with pytest.warns(UserWarning, match=r"emptied layer 'encoder2\.weight'"):
        pruner.step()
    return pruner


def test_the_summary_tells_what_how_much_and_what_was_left_and_why():
    pruner = _summarized()
    found = pruner.summary()
    by_name = {row.name: row for row in found.rows}
    assert [row.name for row in found.pruned] == list(pruner.masks)
    assert by_name["encoder2.weight"].sparsity == 1.0
    assert found.sparsity == pytest.approx(pruner.sparsity) == pytest.approx(0.2, abs=0.01)
    total = sum(parameter.numel() for parameter in pruner.model.parameters())
    assert found.of_model * total == sum(int((~mask).sum()) for mask in pruner.masks.values())
    assert by_name["norm.weight"].reason == "ignored"
    assert by_name["encoder.layer.0.fc.weight"].reason == "ignored"
    assert by_name["embed.weight"].reason == "weight of Embedding: not of a kind that is pruned"
    assert len(found.warnings) == 1 and "encoder2.weight" in found.warnings[0]


def test_the_summary_prints_as_a_table_and_is_plain_data():
    pruner = _summarized()
    text = str(pruner.summary())
    parts = (
        "encoder2.weight", "100.0%", "ignored", "weight of Embedding", "6x4", "step 1 of OneShot",
        "unstructured by Magnitude()", "warning: pruning emptied",
    )  # fmt: skip
    assert all(part in text for part in parts), text
    assert max(map(len, text.splitlines())) <= 120
    assert json.loads(json.dumps(pruner.summary().to_dict()))["sparsity"] == 0.2


def test_the_summary_says_where_n_of_m_finds_nothing():
    pruner = Pruner(
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)), structure="2:4"
    )
    pruner.prune()
    found = pruner.summary()
    assert [row.reason for row in found.left] == ["1 input channel, and 2:4 keeps 2"]
    assert found.sparsity == 0.5


def test_finalize_returns_the_model_and_the_summary_stays():
    pruner = _summarized()
    before = pruner.summary()
    assert pruner.finalize() is pruner.model
    assert pruner.summary() == before
    assert copy.deepcopy(pruner).summary() == before
    assert pickle.loads(pickle.dumps(before)) == before


def test_a_weight_that_is_tied_to_what_is_left_says_so():
    model = Model()
    model.head = nn.Linear(4, 6, bias=False)
    model.head.weight = model.embed.weight
    rows = {row.name: row for row in Pruner(model).summary().rows}
    assert "embed.weight" in rows["head.weight"].reason and "embed.weight" not in rows


def test_a_layer_that_loses_over_99_percent_is_warned_of_once_a_layer():
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    model[0].weight.data[:, 1:] *= 1e-6
    model[0].weight.data[10:] *= 1e-6
    pruner = Pruner(model, None, PolynomialDecay(0.4, 0.5, 0, 4, frequency=1))
    with pytest.warns(UserWarning, match=r"10 of the 1,600 weights of layer '0\.weight'") as said:
        pruner.prune(1590)
        pruner.prune(0)
        pruner.prune(0)
    assert len(said) == 1
    assert "99.38% are zero" in pruner.summary().warnings[0]


def test_layers_at_99_percent_are_not_warned_of(recwarn):
    model = nn.Sequential(nn.Linear(40, 40))
    pruner = Pruner(model)
    pruner.prune(0.99)
    assert not recwarn.list and not pruner.summary().warnings


def test_the_modules_that_the_readme_names_are_there_and_their_functions():
    for module in (sensitivity, lottery, recover):
        assert getattr(sparseinfer.prune, module.__name__.rpartition(".")[2]) is module
    for name in ("scan_sensitivity", "lottery_ticket", "fine_tune", "distillation_loss"):
        assert callable(getattr(sparseinfer.prune, name)) and name in dir(sparseinfer.prune)
    assert all(hasattr(sparseinfer.prune, name) for name in sparseinfer.prune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'sensitivities'"):
        _ = sparseinfer.prune.sensitivities


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "from sparseinfer.prune import scan_sensitivity, sensitivity",
        "import sparseinfer.prune.recover",
        "from sparseinfer.prune.lottery import lottery_ticket",
        "import sparseinfer; sparseinfer.prune.sensitivity.scan_sensitivity",
    ],
)
def test_each_import_works_first_in_a_fresh_process(statement):
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", statement], check=True)


def test_a_summary_of_a_compiled_model_has_plain_names():
    pruner = Pruner(torch.compile(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))))
    assert [row.name for row in pruner.summary().rows] == ["0.weight"]


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    from sparseinfer import plotting
    from sparseinfer.prune import Sensitivity

    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"try pip install 'sparseinfer\[plot\]'"):
        Sensitivity(1.0, [0.5], {"a": [0.9]}).plot(tmp_path / "lines.png")

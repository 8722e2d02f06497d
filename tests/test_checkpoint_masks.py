"""Masks that other tools save beside their weights: applied, or warned of."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparseinfer import cli
from sparseinfer.checkpoints import CheckpointError, load_sparse, load_sparse_into
from sparseinfer.checkpoints.facts import inspect_checkpoint

WEIGHT = torch.arange(1.0, 13.0).reshape(3, 4)
MASK = (WEIGHT % 3 == 0).float()


@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.uint8, torch.float16])
@pytest.mark.parametrize("name", ["fc.weight_mask", "fc.mask"])
def test_a_mask_beside_its_weight_is_applied(tmp_path, name, kind):
    state = {"fc.weight": WEIGHT, "fc.bias": torch.ones(3), name: MASK.to(kind)}
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    save_file(state, tmp_path / "model.safetensors")
    for path in tmp_path.iterdir():
        found = load_sparse(path)
        assert found.keys() == {"fc.weight", "fc.bias"}
        assert torch.equal(found["fc.weight"], WEIGHT * MASK)
        facts = next(t for t in inspect_checkpoint(path).tensors if t.name == "fc.weight")
        assert facts.stored == "mask" and facts.zeros == 8


@pytest.mark.parametrize("mask", [MASK[:, :1], MASK[:1], MASK[0], torch.tensor([[0.0]])])
def test_a_mask_that_torch_broadcasts_is_broadcast(tmp_path, mask):
    path = tmp_path / "model.pth"
    torch.save({"fc.weight_orig": WEIGHT, "fc.weight_mask": mask.contiguous()}, path)
    assert torch.equal(load_sparse(path)["fc.weight"], WEIGHT * mask)


def test_a_parametrization_with_an_element_a_row_masks_rows(tmp_path):
    path, prefix = tmp_path / "model.pth", "fc.parametrizations.weight"
    rows = torch.tensor([True, False, True])
    torch.save({f"{prefix}.original": WEIGHT, f"{prefix}.0.mask": rows}, path)
    assert torch.equal(load_sparse(path)["fc.weight"], WEIGHT * rows[:, None])
    # It may as well be one a column.
    torch.save({f"{prefix}.original": WEIGHT[:, :3].clone(), f"{prefix}.0.mask": rows}, path)
    with pytest.raises(CheckpointError, match=r"expected a mask of shape \[3, 3\], got \[3\]"):
        load_sparse(path)


@pytest.mark.parametrize("name", ["fc.mask_weight", "fc.w_mask", "fc.weight.mask", "fc.mask_0"])
def test_masks_of_other_names_are_warned_of(tmp_path, name):
    path = tmp_path / "model.pth"
    torch.save({"fc.weight": WEIGHT, name: MASK}, path)
    with pytest.warns(UserWarning, match=f"{name}: not applied.* as a mask of fc.weight is"):
        assert torch.equal(load_sparse(path)["fc.weight"], WEIGHT)
    torch.save({"state_dict": {"fc.weight": WEIGHT}, "masks": [MASK]}, path)
    with pytest.warns(UserWarning, match="masks: not applied, for its masks have no names"):
        load_sparse(path)


def test_masks_of_attention_are_not_warned_of(tmp_path, recwarn):
    state = {"layers.0.attn_mask": torch.zeros(4, 9, 9), "attn.mask": torch.ones(1, 1, 4, 4).tril()}
    state |= {"attn.weight": torch.ones(4, 4), "fc.weight": WEIGHT}
    torch.save(state, tmp_path / "model.pth")
    assert load_sparse(tmp_path / "model.pth").keys() == state.keys()
    assert [str(each.message) for each in recwarn] == []


@pytest.mark.parametrize("key", ["mask", "masks", "mask_dict", "pruning_masks"])
@pytest.mark.parametrize(
    "masks",
    [
        {"fc.weight": MASK},
        {"fc": MASK},
        {"fc.weight_mask": MASK},
        {"fc.mask": MASK},
        {"fc": {"weight": MASK, "bias": torch.ones(3)}},
        {"fc": {"weight": MASK, "bias": None}},
    ],
)
def test_a_dict_of_masks_beside_the_weights_is_applied(tmp_path, key, masks):
    state = {"fc.weight": WEIGHT, "fc.bias": torch.ones(3)}
    torch.save({"model": state, key: masks}, tmp_path / "model.pth")
    found = load_sparse(tmp_path / "model.pth")
    assert found.keys() == state.keys()
    assert torch.equal(found["fc.weight"], WEIGHT * MASK)


@pytest.mark.parametrize(
    "mask", [torch.ones(3), torch.full((3, 4), 0.5), 1 - (WEIGHT * MASK != 0).float(), MASK.T]
)
def test_what_may_be_no_mask_is_left_and_warned_of(tmp_path, capsys, mask):
    path = tmp_path / "model.pth"
    torch.save({"fc.weight": WEIGHT * MASK, "fc.weight_mask": mask.contiguous()}, path)
    with pytest.warns(UserWarning, match="fc.weight_mask: not applied"):
        found = load_sparse(path)
    assert torch.equal(found["fc.weight"], WEIGHT * MASK)
    torch.save({"model": {"fc.weight": WEIGHT * MASK}, "masks": {"fc": mask.contiguous()}}, path)
    with pytest.warns(UserWarning, match="masks: fc: not applied, for no weight"):
        load_sparse(path)
    for command in (["inspect"], ["prune", "--dry-run", "--amount", "0.9"]):
        with pytest.raises(SystemExit):
            cli.main([*command, str(path)])
        assert "warning: masks: fc: not applied" in capsys.readouterr().out


@pytest.mark.parametrize("bias", [torch.ones(3), None])
def test_masks_alone_are_told_from_weights(tmp_path, bias):
    masks = {"fc1": {"weight": MASK, "bias": bias}, "fc2": {"weight": MASK, "bias": bias}}
    torch.save(masks, tmp_path / "masks.pth")
    with pytest.raises(CheckpointError, match="got masks of 2 layers, as NNI saves them; try both"):
        load_sparse(tmp_path / "masks.pth")


class Masked(nn.Linear):
    """A layer of another tool, which holds its mask in a buffer."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("weight_mask", torch.ones(3, 4))


def test_models_with_and_without_the_masks_take_the_weights(tmp_path):
    saved = Masked()
    saved.weight_mask.copy_(MASK)
    torch.save(saved.state_dict(), tmp_path / "model.pth")
    for model in (Masked(), nn.Linear(4, 3)):
        load_sparse_into(model, tmp_path / "model.pth")
        assert torch.equal(model.weight, saved.weight * MASK)
    again = load_sparse_into(Masked(), tmp_path / "model.pth")
    assert torch.equal(again.weight_mask, MASK)


def test_masks_in_shards_are_applied(tmp_path):
    save_file({"fc.weight": WEIGHT}, tmp_path / "one.safetensors")
    save_file({"fc.weight_mask": MASK}, tmp_path / "two.safetensors")
    names = {"fc.weight": "one.safetensors", "fc.weight_mask": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert torch.equal(load_sparse(tmp_path)["fc.weight"], WEIGHT * MASK)

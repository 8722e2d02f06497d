"""Masks of other tools that a model carries: read as their owners apply them, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.ao.pruning._experimental.pruner.saliency_pruner import SaliencyPruner
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

from sparseinfer.prune import Pruner


class Mask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


class RowMask(Mask):
    def forward(self, weight):
        return weight * self.mask.view(-1, *[1] * (weight.dim() - 1))


LAYERS = {
    "square": lambda: nn.Linear(8, 8),
    "wide": lambda: nn.Linear(12, 8),
    "conv": lambda: nn.Conv2d(8, 8, 3),
    "conv1d": lambda: nn.Conv1d(4, 8, 8),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 3),
}


def _taken(layer):
    """What Pruner makes of a layer: its weight before and after, and the mask."""
    before = layer.weight.detach().clone()
    model = nn.Sequential(layer)
    pruner = Pruner(model)
    return before, pruner.finalize()[0].weight.detach(), pruner.masks["0.weight"]


@pytest.mark.parametrize("name", ["square", "wide", "conv"])
def test_torch_aos_filters_are_the_rows_that_it_masked(name):
    model = nn.Sequential(LAYERS[name](), nn.ReLU(), LAYERS[name]())
    ao = SaliencyPruner({})
    ao.prepare(model, [{"tensor_fqn": "0.weight", "sparsity_level": 0.5}])
    ao.enable_mask_update = True
    ao.step()
    before, after, mask = _taken(model[0])
    assert torch.equal(after, before)
    assert mask.flatten(1).any(1).tolist() == mask.flatten(1).all(1).tolist()
    assert int(mask.flatten(1).all(1).sum()) == 4
    assert not parametrize.is_parametrized(model[0])


def test_torch_aos_unstructured_masks_still_are():
    model = nn.Sequential(nn.Linear(8, 8))
    ao = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 4))
    ao.prepare(model, [{"tensor_fqn": "0.weight"}])
    ao.step()
    before, after, mask = _taken(model[0])
    assert torch.equal(after, before) and torch.equal(mask, before != 0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_parametrization_of_slices_masks_what_it_masked(name, dtype, dim):
    layer = LAYERS[name]()
    shape = [1] * layer.weight.dim()
    shape[dim] = -1
    flags = (torch.arange(layer.weight.shape[dim]) % 3 != 0).to(dtype)
    parametrize.register_parametrization(layer, "weight", Mask(flags.view(shape)))
    before, after, mask = _taken(layer)
    assert torch.equal(after, before) and torch.equal(mask, before != 0)


def test_one_element_a_row_is_read_as_its_owner_multiplies_it():
    for owner, dim in ((RowMask, 1), (Mask, 0)):
        layer = nn.Linear(8, 8)
        flags = torch.arange(8) % 2 == 0
        parametrize.register_parametrization(layer, "weight", owner(flags))
        before, after, mask = _taken(layer)
        assert torch.equal(after, before)
        assert torch.equal(mask.any(dim), flags) and torch.equal(mask.all(dim), flags)


def test_masks_of_several_parametrizations_and_shapes_multiply():
    layer = nn.Conv2d(6, 8, 3)
    rows, inputs = torch.arange(8) % 2 == 0, (torch.arange(6) % 3 == 0).float()
    full = torch.rand(layer.weight.shape) > 0.5
    for item in (RowMask(rows), Mask(inputs.view(1, 6, 1, 1)), Mask(full)):
        parametrize.register_parametrization(layer, "weight", item)
    before, after, mask = _taken(layer)
    assert torch.equal(after, before)
    wanted = rows.view(8, 1, 1, 1) & (inputs != 0).view(1, 6, 1, 1) & full
    assert torch.equal(mask, wanted)


def test_one_mask_of_two_layers_is_taken_over_in_both():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    shared = RowMask(torch.arange(8) < 4)
    for layer in model:
        parametrize.register_parametrization(layer, "weight", shared)
    pruner = Pruner(model)
    assert all(mask[:4].all() and not mask[4:].any() for mask in pruner.masks.values())


@pytest.mark.parametrize("hook", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (8, 1), (1, 8)])
def test_torchs_masks_broadcast_as_torch_multiplies_them(shape, hook):
    layer = nn.Linear(8, 8)
    torch_prune.identity(layer, "weight")
    layer.weight_mask = (torch.rand(shape) > 0.5).float()
    if not hook:
        layer._forward_pre_hooks.clear()
    wanted = (layer.weight_orig * layer.weight_mask).detach()
    pruner = Pruner(nn.Sequential(layer))
    assert torch.equal(layer.weight.detach(), wanted)
    assert torch.equal(pruner.masks["0.weight"], (layer.weight != 0))
    assert sorted(layer.state_dict()) == ["bias", "weight"] and not layer._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("square", (8, 8)),
        ("square", (8, 1)),
        ("square", (1, 8)),
        ("wide", (8,)),
        ("conv", (8,)),
        ("conv", (8, 1, 1, 1)),
        ("conv", (1, 8, 1, 1)),
    ],
)
def test_a_mask_beside_the_weight_is_taken_over(name, shape, dtype):
    layer = LAYERS[name]()
    mask = (torch.arange(torch.Size(shape).numel()) % 2 == 0).reshape(shape)
    layer.register_buffer("weight_mask", mask.to(dtype))
    model = nn.Sequential(layer, nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(model, optimizer)
    full = mask.view(-1, *[1] * (layer.weight.dim() - 1)) if len(shape) == 1 else mask
    full = full.expand(layer.weight.shape)
    x = torch.randn(4, *(layer.weight.shape[1:2]), *[5] * (layer.weight.dim() - 2))
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight != 0, full) and torch.equal(pruner.masks["0.weight"], full)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((8,), r"one element a row, \(8, 1\), got one of \(8,\)"), ((7, 8), r"\(7, 8\)")],
)
def test_a_mask_that_fits_in_no_way_or_in_two_is_refused_by_name(shape, wanted):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].register_buffer("weight_mask", torch.ones(shape))
    with pytest.raises(ValueError, match=rf"'1\.weight', \(8, 8\).*{wanted}"):
        Pruner(model)
    assert list(Pruner(model, ignore="1").masks) == ["0.weight"]


def test_a_mask_of_scores_is_refused():
    layer = nn.Linear(8, 8)
    layer.register_buffer("weight_mask", torch.rand(8, 8))
    with pytest.raises(ValueError, match=r"zeros and ones in the mask of '0\.weight'"):
        Pruner(nn.Sequential(layer))


class Soft(Mask):
    def forward(self, weight):
        return weight * 0.5 * self.mask


class Clipped(Mask):
    def forward(self, weight):
        return (weight * self.mask).clamp(-2, 2)


class Folded(Mask):
    def forward(self, weight):
        return (weight.triu() + weight.triu(1).T) * self.mask


class Raising(Mask):
    def forward(self, weight):
        if weight.max() > 50:
            raise KeyError("no such weight")
        return weight * self.mask


@pytest.mark.parametrize("kind", [Soft, Clipped, Folded, Raising])
def test_a_parametrization_that_does_more_than_mask_is_refused(kind):
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", kind(torch.ones(8, 1)))
    with pytest.raises(ValueError, match=r"'0\.weight'.*\(8, 8\).*\(8, 1\)"):
        Pruner(nn.Sequential(layer))
    assert parametrize.is_parametrized(layer)


def test_a_mask_with_another_parametrization_is_refused_by_name():
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", Mask(torch.ones(8, 8)))
    parametrizations.spectral_norm(layer)
    with pytest.raises(ValueError, match=r"'0\.weight'.*Mask, _SpectralNorm"):
        Pruner(nn.Sequential(layer))


def test_what_is_ignored_keeps_its_masks_and_whatever_computes_it():
    model = nn.Sequential(
        nn.Linear(8, 8), parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)
    )
    torch_prune.l1_unstructured(model[2], "weight", 0.5)
    pruner = Pruner(model, ignore=["1", "2"])
    assert list(pruner.masks) == ["0.weight"] and len(pruner.skipped) == 2
    assert parametrize.is_parametrized(model[1]) and "weight_mask" in model[2]._buffers


def test_a_refusal_leaves_every_mask_where_it_was():
    model = nn.Sequential(nn.Linear(8, 8), parametrizations.weight_norm(nn.Linear(8, 8)))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"'1\.weight'"):
        Pruner(model)
    assert "weight_mask" in model[0]._buffers

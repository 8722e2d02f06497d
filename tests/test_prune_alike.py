"""One meaning of a structure: Pruner, the pruning of checkpoints and the nm format agree."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import packed_along_columns, sparse_weight
from torch import nn
from transformers.pytorch_utils import Conv1D

import sparseinfer
from sparseinfer.checkpoints.prune import Recipe, prune_checkpoint, prune_state_dict
from sparseinfer.formats import info, pack, unpack
from sparseinfer.formats.patterns import detect_pattern
from sparseinfer.prune import Pruner

LAYERS = {
    "linear": lambda: nn.Linear(20, 16),
    "conv1d": lambda: nn.Conv1d(12, 16, 5),
    "conv2d": lambda: nn.Conv2d(8, 16, 3),
    "ragged": lambda: nn.Conv2d(10, 16, (3, 2)),
    "few": lambda: nn.Conv2d(3, 16, 3),
    "pointwise": lambda: nn.Conv2d(8, 16, 1),
    "grouped": lambda: nn.Conv2d(16, 16, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "strided": lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 12, 3),
    "gpt2": lambda: Conv1D(24, 8),
}


def _layer(name, ties):
    layer = LAYERS[name]()
    with torch.no_grad():
        values = torch.randint(-3, 4, layer.weight.shape).float()
        layer.weight.copy_(values if ties else torch.randn(layer.weight.shape))
    return layer


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("structure", ["2:4", "1:4", "4:8", "4x1", "1x4", "filters", "channels"])
@pytest.mark.parametrize("name", LAYERS)
def test_both_prunes_give_identical_masks(name, structure, ties):
    model = nn.Sequential(_layer(name, ties), _layer("linear", ties))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    amount = None if ":" in structure else 0.5
    with warnings.catch_warnings():  # a layer of one input channel may be emptied
        warnings.simplefilter("ignore", UserWarning)
        Pruner(model, structure=structure).prune(amount)
        prune_state_dict(state, Recipe(structure=structure, amount=amount))
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_the_file_of_a_model_is_pruned_as_the_model_is(tmp_path):
    model = nn.Sequential(_layer("conv2d", True), _layer("conv1d", True), _layer("linear", True))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    prune_checkpoint(tmp_path / "model.pth", Recipe(structure="2:4"), tmp_path / "pruned.pth")
    Pruner(model, structure="2:4").prune()
    pruned = torch.load(tmp_path / "pruned.pth")
    assert all(torch.equal(value, pruned[key]) for key, value in model.state_dict().items())


CONVERTED = [
    *((name, "2:4") for name in LAYERS if name not in ("depthwise", "gpt2")),
    *((name, nm) for name in ("linear", "conv1d", "conv2d", "strided") for nm in ("1:4", "4:8")),
]


@pytest.mark.parametrize(("name", "structure"), CONVERTED)
def test_what_pruner_prunes_to_n_of_m_converts_to_nm_and_computes_the_same(name, structure):
    model = nn.Sequential(_layer(name, False)).eval()
    Pruner(model, structure=structure).prune()
    layer = model[0]
    weight = layer.weight.detach().clone()
    if name not in ("few", "transposed"):  # fewer channels than m, and inputs first
        assert str(detect_pattern(weight)) == structure
    channels = getattr(layer, "in_channels", 20)
    image = {"linear": (), "conv1d": (9,)}.get(name, (9, 9))
    x = torch.randn(2, channels, *image)
    wanted = model(x)
    converted = sparseinfer.convert_to_sparse(model, formats="nm", min_speedup=0)
    assert info(converted[0].packed)["format"] == "nm"
    torch.testing.assert_close(converted(x), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(converted[0].dense_weight(), weight)


def test_linear_weights_are_packed_as_ever_and_convolutions_by_kernel_position():
    weight = sparse_weight((8, 24, 1, 1), 1.0, nm=(2, 4))
    pointwise, linear = pack(weight, "nm"), pack(weight.flatten(1), "nm")
    assert torch.equal(pointwise[128:], linear[128:])
    weight = sparse_weight((8, 8, 3, 3), 1.0, nm=(2, 4))
    with pytest.raises(ValueError, match="consecutive columns"):
        pack(weight.flatten(1), "nm")
    with pytest.raises(ValueError, match=r"input channels.*kernel position \(\d, \d\)"):
        pack(weight.movedim(1, -1).reshape(weight.shape), "nm")
    assert torch.equal(unpack(pack(weight, "nm")), weight)


def test_a_state_dict_with_a_convolution_packed_along_columns_is_still_read():
    layer = nn.Conv2d(6, 8, 3, padding=1, bias=False)
    Pruner(layer, structure="2:4").prune()
    converted = sparseinfer.convert_to_sparse(nn.Sequential(layer), formats="nm", min_speedup=0)
    weight = sparse_weight((8, 54), 1.0, nm=(2, 4)).view(8, 6, 3, 3)
    converted.load_state_dict({"0.packed": packed_along_columns(weight)})
    assert torch.equal(converted[0].dense_weight(), weight)
    x = torch.randn(2, 6, 7, 7)
    wanted = nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(converted(x), wanted, atol=1e-5, rtol=1e-5)

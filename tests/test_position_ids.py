"""RoBERTa and its kin as engines: positions that a model counts from ids, and masks of padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from elsewhere import check_elsewhere
from test_transformer_networks import Inputs, Made, close, ops, pruned
from torch import Tensor, nn

from sparseinfer.export.compile import compile
from sparseinfer.export.errors import UnsupportedOperators

PAD = 1


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def ids(batch: int, length: int = 7, padded: int = 2) -> Inputs:
    """Of padding at the end of the last sample, and of every other as well but less."""
    found = torch.randint(PAD + 1, 50, (batch, length))
    for row in range(batch):
        found[row, length - (padded if row == batch - 1 else row % 2) :] = PAD
    return {"input_ids": found, "attention_mask": (found != PAD).long()}


def made(kind: str, places: int = 20, **more: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=places, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False)
    for name, parameter in model.named_parameters():
        if "embeddings" in name and "Norm" not in name:
            nn.init.normal_(parameter)
    return pruned(model)


def roberta() -> Made:
    return made("Roberta"), ids(2)


def roberta_without_padding() -> Made:
    return made("Roberta"), ids(3, padded=0)


def roberta_of_ids_alone() -> Made:
    inputs = ids(2)
    del inputs["attention_mask"]
    return made("Roberta"), inputs


def roberta_of_types() -> Made:
    inputs = ids(2)
    types = {"token_type_ids": torch.randint(2, inputs["input_ids"].shape)}
    return made("Roberta", type_vocab_size=2), {**inputs, **types}


def xlm_roberta() -> Made:
    return made("XLMRoberta"), ids(1)


def camembert() -> Made:
    return made("Camembert"), ids(2)


def mpnet() -> Made:
    """Biases by how far apart two tokens stand, besides."""
    return made("MPNet"), ids(2)


MODELS = [
    roberta, roberta_without_padding, roberta_of_ids_alone, roberta_of_types, xlm_roberta,
    camembert, mpnet,
]  # fmt: skip


@pytest.mark.parametrize("make", MODELS)
def test_models_that_count_positions(make: Callable[[], Made]) -> None:
    model, inputs = make()
    engine = compile(model, inputs, baselines=(), dynamic="batch")
    assert ops(engine).count("attention") == 2
    for batch, padded in ((1, 0), (2, 7), (5, 3)):
        other = {**inputs, **ids(batch, padded=padded)}
        if "token_type_ids" in inputs:
            other["token_type_ids"] = torch.randint(2, (batch, 7))
        assert close(engine, model, {name: other[name] for name in inputs})
    # Padding may stand anywhere: what follows it is counted on.
    scattered = {name: x.roll(-3, 1) for name, x in inputs.items()}
    assert close(engine, model, scattered)


def test_positions_in_a_file(tmp_path: Path) -> None:
    model, inputs = roberta()
    engine = compile(model, inputs, baselines=(), golden=True)
    compared = engine.compare(model, inputs)
    assert compared.first is None, str(compared)
    check_elsewhere(engine, inputs, tmp_path)
    beyond = inputs["input_ids"].clone()
    beyond[0, 0] = 50
    with pytest.raises(ValueError, match="ids of 'input_ids' from 0 to 49, got 50"):
        engine(**{**inputs, "input_ids": beyond})


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_positions_are_counted_in_floats(weights: str) -> None:
    model = made("Roberta", 300)
    inputs = ids(2, 290, 31)
    more = [ids(2, 290, padded) for padded in (3, 50)] if weights == "int8" else None
    engine = compile(model, inputs, baselines=(), weights=weights, calibration=more)
    given, own = engine(**inputs).last_hidden_state, model(**inputs).last_hidden_state
    assert (given - own).norm() <= 0.1 * own.norm()


class Embeds(nn.Module):
    """Ids looked up, and what is made of those that are not padding."""

    def __init__(self, make: Callable[[nn.Module, Tensor], Tensor], pad: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(50, 8), nn.Embedding(9, 8)
        self.make, self.pad = make, pad

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids) + self.make(self, input_ids)


def places(model: nn.Module, x: Tensor) -> Tensor:
    shown = x.ne(model.pad).long()
    return model.places((shown.cumsum(-1) - 1) * shown)


def hidden(model: nn.Module, x: Tensor) -> Tensor:
    return torch.zeros(x.shape).masked_fill(x == model.pad, -torch.inf).softmax(-1)[..., None]


def counts(model: nn.Module, x: Tensor) -> Tensor:
    return (x != model.pad).int().cumsum(1).float()[..., None]


def places_of_all(model: nn.Module, x: Tensor) -> Tensor:
    """As of a model that hides no token, whatever its id."""
    shown = (x == model.pad) | (x != model.pad)
    return model.places(shown.long().cumsum(1))


@pytest.mark.parametrize("pad", [0, 1, 49])
@pytest.mark.parametrize("make", [hidden, counts, places, places_of_all])
def test_masks_of_one_id(make: Callable[[nn.Module, Tensor], Tensor], pad: int) -> None:
    model = Embeds(make, pad).eval()
    x = torch.randint(50, (2, 7))
    x[0, 1] = x[1, 3] = pad
    x[:, 0] = 5
    if make is places:  # of a token before the first that is shown, the place would be -1
        engine_error = "positions from -1 to 6"
        with pytest.raises(UnsupportedOperators, match=engine_error):
            compile(model, x, baselines=())
        return
    engine = compile(model, x, baselines=(), dynamic="batch")
    assert close(engine, model, {"input_ids": torch.cat([x, x.flip(0)])})


def test_what_is_counted_otherwise_is_refused() -> None:
    cases: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
        "sums over other than the last": lambda own, x: own.places(x.ne(1).long().cumsum(0)),
        "table has 9 rows": lambda own, x: own.places(x.ne(1).long().cumsum(1) + 5),
        "nothing computes it of these": lambda own, x: own.places(x.ne(1).long().cumsum(1) // 2),
    }
    for told, make in cases.items():
        with pytest.raises(UnsupportedOperators, match=told):
            compile(Embeds(make, 1).eval(), torch.randint(50, (2, 7)), baselines=())

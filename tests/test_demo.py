"""The demo: hostile data files, its measurements, and the whole of it on scikit-learn's digits."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import struct

import numpy as np
import pytest
import torch
from rich.console import Console

from sparseinfer import demo
from sparseinfer.demo import data, results, show, training
from sparseinfer.demo.int8 import calibration_batches, dense_int8
from sparseinfer.demo.network import DemoNet
from sparseinfer.demo.plot import draw
from sparseinfer.demo.results import Latency, Ratio
from sparseinfer.timing.machine import selected_isa
from sparseinfer.timing.rounds import Rounds

# --- IDX files


def idx(array, magic=None):
    header = magic if magic is not None else bytes([0, 0, 8, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def folder(path, train=120, test=30, size=(9, 11), zipped=False, **replaced):
    """A folder of IDX files; `replaced` overwrites the bytes of a role (train_images=...)."""
    generator = np.random.default_rng(0)
    for role, name in data.IDX_FILES.items():
        count = train if "train" in role else test
        shape = (count, *size) if "images" in role else (count,)
        content = idx(generator.integers(0, 10, shape, dtype=np.uint8))
        content = replaced.get(role.replace(" ", "_"), content)
        target = path / (f"{name}.gz" if zipped else name)
        target.write_bytes(gzip.compress(content) if zipped else content)
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read_plain_and_gzipped(tmp_path, zipped):
    dataset = data.load(folder(tmp_path, zipped=zipped), seed=0)
    assert dataset.image_size == (9, 11)
    assert dataset.train_images.shape == (108, 1, 9, 11)
    assert dataset.validation_images.shape == (12, 1, 9, 11)
    assert dataset.test_labels.shape == (30,)
    assert float(dataset.train_images.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(dataset.train_images.std()) == pytest.approx(1.0, abs=1e-2)


def test_train_images_are_limited_and_validation_is_held_out(tmp_path):
    dataset = data.load(folder(tmp_path, train=400), seed=1, train_images=150)
    assert len(dataset.train_labels) == 150
    assert len(dataset.validation_labels) == 40
    assert dataset.available_train_images == 400


IMAGES = np.zeros((120, 9, 11), np.uint8)
LABELS = np.zeros(120, np.uint8)
BAD = {
    "empty": (dict(train_images=b""), "train-images.*file of 0 bytes"),
    "wrong rank": (dict(train_images=idx(LABELS)), "expected the IDX magic 00 00 08 03"),
    "wrong type": (dict(train_labels=idx(LABELS, b"\0\0\x0d\x01")), "got 00 00 0d 01"),
    "no IDX at all": (dict(test_images=b"\x89PNG\r\n\x1a\n" * 99), "got 89 50 4e 47"),
    "header cut": (dict(train_images=idx(IMAGES)[:9]), "truncated"),
    "body cut": (dict(train_images=idx(IMAGES)[:-1]), "expected 11880 bytes.*got 11879"),
    "body too long": (dict(train_images=idx(IMAGES) + b"x"), "expected 11880 bytes.*got more"),
    "huge count": (dict(train_labels=b"\0\0\x08\x01\xff\xff\xff\xff"), "1 to 1000000 items"),
    "no items": (dict(train_labels=b"\0\0\x08\x01\0\0\0\0"), "1 to 1000000 items"),
    "huge side": (
        dict(train_images=b"\0\0\x08\x03" + struct.pack(">3I", 120, 2**31, 2**31)),
        "8 to 64 pixels a side, got 2147483648x2147483648",
    ),
    "too few labels": (dict(train_labels=idx(LABELS[:-1])), "expected 120 labels, got 119"),
    "labels too large": (dict(train_labels=idx(LABELS + 10)), "labels 0 to 9, got 10"),
    "test of another size": (
        dict(test_images=idx(np.zeros((30, 9, 9), np.uint8))),
        "of the size of the training images",
    ),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_idx_file_is_refused_in_one_line_that_names_it(tmp_path, name, zipped):
    replaced, message = BAD[name]
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(folder(tmp_path, zipped=zipped, **replaced), seed=0)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_gzip_is_refused(tmp_path):
    folder(tmp_path, zipped=True)
    target = tmp_path / f"{data.IDX_FILES['train images']}.gz"
    whole = target.read_bytes()
    garbled = whole[:100] + bytes(byte ^ 0xFF for byte in whole[100:140]) + whole[140:]
    for damaged in (whole[:-200], garbled, b"\x1f\x8b" + b"\0" * 40, b"\x1f\x8b"):
        target.write_bytes(damaged)
        with pytest.raises(data.DataError, match=r"train-images-idx3-ubyte\.gz"):
            data.load(tmp_path, seed=0)


def test_a_gzip_bomb_is_not_inflated(tmp_path):
    folder(tmp_path, zipped=True)
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as stream:
        stream.write(idx(LABELS))
        for _ in range(64):
            stream.write(bytes(2**22))
    (tmp_path / f"{data.IDX_FILES['train labels']}.gz").write_bytes(bomb.getvalue())
    with pytest.raises(data.DataError, match=r"expected 120 bytes.*got more"):
        data.load(tmp_path, seed=0)


def test_missing_files_folders_and_odd_ones_are_refused(tmp_path):
    with pytest.raises(data.DataError, match="no such folder"):
        data.load(tmp_path / "absent", seed=0)
    with pytest.raises(data.DataError, match="expected a file train-images-idx3-ubyte or"):
        data.load(tmp_path, seed=0)
    folder(tmp_path)
    target = tmp_path / data.IDX_FILES["test labels"]
    target.unlink()
    target.mkdir()
    with pytest.raises(data.DataError, match="expected a regular file"):
        data.load(tmp_path, seed=0)


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(data.DataError, match="at least 100 training images, got 60"):
        data.load(folder(tmp_path, train=60), seed=0)


# --- measurements


def test_latencies_are_milliseconds_and_ratios_those_of_the_rounds():
    found = Rounds({"a": [2e-3, 4e-3, 6e-3], "b": [1e-3, 1e-3, 2e-3]}, {"a": 1, "b": 1})
    assert Latency.of(found, "a") == Latency(4.0, 3.0, 5.0, rounds=3)
    assert Ratio.of(found.speedup("b", over="a")) == Ratio(3.0, 2.5, 3.5)


def test_comparison_needs_the_quartiles_on_its_side():
    assert results.word_of(Ratio(1.5, 1.2, 1.8)) == "faster"
    assert results.word_of(Ratio(0.7, 0.6, 0.8)) == "slower"
    assert results.word_of(Ratio(1.5, 0.9, 1.8)) == "even"
    assert results.word_of(Ratio(0.7, 0.6, 1.1)) == "even"
    assert results.word_of(Ratio(1.01, 1.005, 1.02)) == "even"


def test_stage_prints_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with show.stage(Console(file=stream), "Working", 2) as advance:
        advance("half")
        advance("whole")
    first, second = stream.getvalue().splitlines()
    assert first == "Working ..."
    assert second.startswith("  done in ") and second.endswith(": whole")


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (28, 28), (64, 8)])
def test_network_takes_every_image_size_the_data_may_have(size):
    assert DemoNet(size).eval()(torch.zeros(2, 1, *size)).shape == (2, 10)


# --- the whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run on digits with the smallest settings that still prune to the end."""
    out = tmp_path_factory.mktemp("demo") / "deep" / "out"
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DEBIAN_FASHION_MNIST", out / "absent")
        # What is measured here, on tiny layers beside other work, must not decide what is tested.
        lenient = functools.partial(demo.convert_to_sparse, min_speedup=1e-6)
        patch.setattr(demo, "convert_to_sparse", lenient)
        options = demo.Options(
            out=out, epochs=1, prune_epochs=1, train_images=300, seed=3, timing_s=0.1
        )
        before = torch.get_rng_state()
        found = demo.run(options, Console(file=stream, width=120))
        assert torch.equal(torch.get_rng_state(), before)
    return found, out, stream.getvalue()


def test_demo_prunes_exactly_and_the_converted_model_agrees(whole):
    found, _, _ = whole
    assert found.dataset == "digits"
    assert found.pruned_weights == round(0.9 * found.prunable_weights)
    assert found.agreement.images == found.test_images == 360
    assert found.agreement.largest_logit_difference < 1e-3
    assert found.agreement.different_classes == 0
    assert found.accuracy["pruned"] == found.accuracy["converted"]
    assert found.curve.steps[-1] == found.dense_steps + found.prune_steps
    assert found.curve.sparsity[-1] == pytest.approx(0.9, abs=1e-5)
    assert [speed.batch for speed in found.speeds] == [1, 32]


def test_demo_writes_its_files_whole(whole):
    found, out, _ = whole
    assert sorted(path.name for path in out.iterdir()) == [
        "converted.pt",
        "demo.json",
        "demo.png",
        "int8.pt",
        "pruned.pt",
    ]
    content = json.loads((out / "demo.json").read_text())
    assert content["accuracy"] == found.accuracy
    assert content["verdict"] == found.verdict
    assert content["versions"]["torch"] and content["machine"]
    assert content["report"]["layers"]
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    for name, size in (("pruned", "pruned_disk"), ("converted", "converted_disk")):
        assert (out / f"{name}.pt").stat().st_size == content["sizes"][size]
        torch.load(out / f"{name}.pt", weights_only=True)
    assert (out / "int8.pt").stat().st_size == content["int8"]["disk"]
    assert content["int8"]["report"]["layers"]


def results_with(found, median):
    """The same results with another speed-up."""
    ratio = Ratio(median, median, median)
    speeds = [dataclasses.replace(speed, over_pruned=ratio) for speed in found.speeds]
    return dataclasses.replace(found, speeds=speeds)


def test_demo_tells_all_it_found(whole):
    found, out, text = whole
    assert "360 of 360 test images" in text
    assert "trains on 300 of 1,437 images" in text
    unwrapped = " ".join(text.split())
    assert found.verdict in unwrapped
    assert "did NOT get faster" in results_with(found, median=0.5).verdict
    assert str(out) in text.replace("\n", "")


@pytest.mark.skipif(selected_isa() == "scalar", reason="the scalar kernels do not beat dense ones")
def test_demo_converts_something_and_that_is_smaller(whole):
    found, _, _ = whole
    assert any(layer["format"] != "dense" for layer in found.report["layers"])
    assert found.sizes.converted_memory < found.sizes.pruned_memory
    assert found.sizes.converted_disk < found.sizes.pruned_disk


@pytest.mark.skipif(selected_isa() == "scalar", reason="the scalar kernels do not beat dense ones")
def test_int8_stands_beside_float32_and_keeps_its_accuracy(whole):
    found, _, text = whole
    assert found.int8.layers > 0
    assert found.int8.disk < found.sizes.converted_disk
    assert abs(results.int8_loss(found)) <= 0.5
    assert found.int8.agreement.different_classes <= 0.01 * found.test_images
    assert "sparse, int8" in text and "sparse, float32" in text
    assert f"{found.int8.layers} of 6 layers" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(whole, width):
    found, _, _ = whole
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    console.print(show.summary(found))
    console.print(show.int8(found))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "…" not in stream.getvalue()
    assert ("dense, int8 by torch" in stream.getvalue()) == (not found.int8.missing)


def test_a_torch_without_int8_is_told_of_and_left_out(whole, monkeypatch):
    found, _, _ = whole
    monkeypatch.delattr("torch.ao.quantization.quantize_fx.prepare_fx")
    network = DemoNet((8, 8)).eval()
    quantized, missing = dense_int8(network, [torch.zeros(4, 1, 8, 8)])
    assert quantized is None and missing
    latency = dict(found.speeds[0].latency)
    latency.pop("dense int8", None)
    speeds = [dataclasses.replace(found.speeds[0], latency=latency, int8_over_dense_int8=None)]
    without = dataclasses.replace(
        found,
        speeds=speeds,
        accuracy={name: own for name, own in found.accuracy.items() if name != "dense int8"},
        int8=dataclasses.replace(found.int8, dense_disk=None, missing=missing),
    )
    stream = io.StringIO()
    Console(file=stream, width=80).print(show.int8(without))
    assert "by torch" not in stream.getvalue() and "sparse, int8" in stream.getvalue()
    assert missing in show.int8_footnotes(without)[-1]
    assert draw(without).startswith(b"\x89PNG")


def test_dense_int8_is_torch_s_own_and_close_to_float32():
    torch.manual_seed(0)
    network, images = DemoNet((8, 8)).eval(), torch.rand(32, 1, 8, 8)
    before = {name: own.clone() for name, own in network.state_dict().items()}
    quantized, missing = dense_int8(network, calibration_batches(images))
    if quantized is None:
        pytest.skip(f"torch has no dense int8 here: {missing}")
    assert type(quantized.hidden).__module__.startswith("torch.ao")
    with torch.inference_mode():
        exact, y = network(images), quantized(images)
    assert 0 < float((y - exact).abs().max()) < 0.1 * float(exact.abs().max())
    assert all(torch.equal(own, before[name]) for name, own in network.state_dict().items())


def test_training_is_the_same_for_the_same_seed(tmp_path):
    dataset = data.load(folder(tmp_path), seed=0)

    def weights():
        torch.manual_seed(5)
        model = DemoNet(dataset.image_size)
        training.train(model, dataset, 1, 5, training.Curve(), lambda status: None)
        return model.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)

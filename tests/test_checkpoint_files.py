"""Reading and writing checkpoints: the damaged and the unsafe is refused, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from sparseinfer.checkpoints import (
    CheckpointError,
    Recipe,
    load_sparse,
    prune_checkpoint,
    save_sparse,
)

STATE = {"fc.weight": torch.arange(12.0).reshape(3, 4), "fc.bias": torch.ones(3)}


def refused(path, message, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_sparse(path, **options)
    text = str(caught.value)
    assert "\n" not in text and "expected" in text and "got" in text and "try" in text


# --- files that cannot be read


def test_missing(tmp_path):
    refused(tmp_path / "absent.pth", "absent.pth: expected a checkpoint, got none")


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "model.bin"])
def test_empty(tmp_path, name):
    (tmp_path / name).touch()
    refused(tmp_path / name, "got an empty file")


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_garbage(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is no checkpoint at all")
    refused(tmp_path / name, "that cannot be read")


def test_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "expected a regular file")


@pytest.mark.parametrize("keep", [0.5, 0.99])
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "legacy.pth"])
def test_truncated(tmp_path, name, keep):
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(STATE, path, _use_new_zipfile_serialization=name != "legacy.pth")
    else:
        save_file(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    refused(path, "cannot be read|damaged archive")


@pytest.mark.parametrize("length", [0, 5, 10**6, 2**40, 2**64 - 1])
def test_wrong_header_lengths_of_safetensors(tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(path, "expected a safetensors file")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 4000]},
        {"dtype": "F32", "shape": [3, 4000], "data_offsets": [0, 48]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 48]},
        {"dtype": "F32", "shape": [3, 4], "data_offsets": [8, 56]},
        {"dtype": "X32", "shape": [3, 4], "data_offsets": [0, 48]},
    ],
)
def test_wrong_headers_of_safetensors(tmp_path, entry):
    header = json.dumps({"fc.weight": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(48))
    refused(path, "expected a safetensors file")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_else(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("model.pth", "model.safetensors"):
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            load_sparse(folder / name)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """The bytes of one checkpoint in each container."""
    folder = tmp_path_factory.mktemp("whole")
    state = {"fc.weight": torch.eye(32), "fc.bias": torch.ones(32)}
    save_sparse(state, folder / "model.safetensors")
    torch.save({"epoch": 1, "model": state}, folder / "model.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.data())
def test_changed_bytes_are_refused_or_read_but_never_crash(whole_files, tmp_path, data):
    name = data.draw(st.sampled_from(sorted(whole_files)))
    content = bytearray(whole_files[name])
    # Headers lie at the beginning, the directory of an archive at the end.
    places = st.integers(-900, 900) | st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content)
    try:
        found = load_sparse(tmp_path / name)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


# --- pickles


def test_a_pickled_module_is_refused_with_the_way_to_convert_it(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "module.pth")
    refused(tmp_path / "module.pth", r"runs code \(torch.nn.modules.container.Sequential\); try")
    refused(tmp_path / "module.pth", r"weights_only=False\)\.state_dict\(\)")


class _Exploit:
    def __reduce__(self):
        return (os.mkdir, ("exploited",))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_runs_code(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE, "x": _Exploit()}, "x.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "x.pth", "runs code")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(_Exploit()))
    refused(tmp_path / "raw.bin", "cannot be read|runs code")
    assert not (tmp_path / "exploited").exists()


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"")
    refused(tmp_path / "script.pt", "TorchScript archive; try torch.save")


def test_an_archive_that_would_inflate_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(tmp_path / "bomb.pth", "compressed members")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(2**20, 2**20), torch.zeros(20).as_strided((9, 9), (1, 1))],
)
def test_a_tensor_larger_than_its_memory_is_refused(tmp_path, tensor):
    torch.save({"fc.weight": tensor}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "fc.weight: expected a tensor with memory for each element")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 4, 3, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(6, 4).t(),
        torch.randn(9, 9)[2:5, ::2],
        torch.randn(3, 1, 2).expand(3, 1, 2),
    ],
)
def test_views_are_read_and_pruned_as_they_are(tmp_path, tensor):
    torch.save({"fc.weight": tensor}, tmp_path / "model.pth")
    assert torch.equal(load_sparse(tmp_path / "model.pth")["fc.weight"], tensor)
    prune_checkpoint(tmp_path / "model.pth", Recipe(amount=0.5), tmp_path / "out.pth")
    pruned = load_sparse(tmp_path / "out.pth")["fc.weight"]
    assert pruned.stride() == tensor.stride()
    assert int((pruned == 0).sum()) == round(0.5 * tensor.numel())
    assert torch.equal(pruned[pruned != 0], tensor[pruned != 0])


# --- nesting


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (STATE, ""),
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 4)}}}}, "model"),
        ({"model": STATE, "ema": dict(STATE), "lr": 0.1}, "model"),
        ({"generator": STATE}, "generator"),
        ({"checkpoint": {"model": STATE}, "step": torch.tensor([3, 4])}, "checkpoint.model"),
        ({"module": {f"module.{name}": value for name, value in STATE.items()}}, "module"),
    ],
)
def test_nested_state_dicts_are_found(tmp_path, content, key):
    torch.save(content, tmp_path / "model.pth")
    for given_key in (None, key) if key else (None,):
        found = load_sparse(tmp_path / "model.pth", given_key)
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_two_state_dicts_are_a_question(tmp_path):
    torch.save({"student": STATE, "teacher": STATE}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "got several: student, teacher; try --key student")
    assert load_sparse(tmp_path / "model.pth", "teacher").keys() == STATE.keys()


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"epoch": 3}, None, "expected a dict of tensors, got one with 'epoch'"),
        ({}, None, "got one with no key"),
        ([1, 2], None, "got list"),
        (torch.ones(3), None, "got Tensor"),
        ({"fc.weight": torch.ones(2, 2), 3: torch.ones(2)}, None, "names of tensors as keys"),
        ({"model": STATE}, "net", "expected --key to name a dict, got 'net'; try one of model"),
        ({"model": STATE, "epoch": 1}, "epoch", "expected a dict of tensors at 'epoch', got int"),
    ],
)
def test_missing_keys(tmp_path, content, key, message):
    torch.save(content, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", message, key=key)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix):
    save_file({prefix + name: value for name, value in STATE.items()}, tmp_path / "a.safetensors")
    assert load_sparse(tmp_path / "a.safetensors").keys() == STATE.keys()


def test_safetensors_are_known_by_their_content(tmp_path):
    save_file(STATE, tmp_path / "model.bin")
    assert load_sparse(tmp_path / "model.bin").keys() == STATE.keys()


# --- shards


def sharded(folder):
    folder.mkdir()
    names = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
    for name, file in names.items():
        save_file({name: torch.randn(4, 4)}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 128}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_come_from_the_folder_or_its_index(tmp_path):
    sharded(tmp_path / "model")
    for path in (tmp_path / "model", tmp_path / "model" / "model.safetensors.index.json"):
        assert load_sparse(path).keys() == {"a.weight", "b.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.weight": "../one.safetensors"}, "expected the name of a file beside it"),
        ({"a.weight": "/etc/passwd"}, "expected the name of a file beside it"),
        ({"a.weight": 3}, "expected the name of a file beside it"),
        ({"a.weight": ".."}, "expected the name of a file beside it"),
        ({"a.weight": "absent.safetensors"}, "absent.safetensors: expected a checkpoint, got none"),
        (
            {"c.weight": "two.safetensors"},
            "expected a tensor c.weight in two.safetensors, got none",
        ),
    ],
)
def test_hostile_indexes(tmp_path, change, message):
    index = sharded(tmp_path / "model")
    index["weight_map"].update(change)
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path / "model", message)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    sharded(tmp_path / "model")
    both = {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}
    save_file(both, tmp_path / "model" / "two.safetensors")
    refused(tmp_path / "model", "expected each tensor in one file, got one in several")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": {}}', "[" * 100_000])
def test_damaged_indexes(tmp_path, content):
    sharded(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(content)
    refused(tmp_path / "model", "empty file|expected JSON|with a weight_map")


def test_a_folder_without_weights(tmp_path):
    refused(tmp_path, "expected a folder with model.safetensors or pytorch_model.bin")


# --- writing


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_crash_in_mid_write_leaves_the_input_whole(tmp_path, name):
    path = tmp_path / name
    torch.save(STATE, path) if name.endswith("pth") else save_file(STATE, path)
    before = path.read_bytes()
    script = f"""
        import os, signal, torch, safetensors.torch
        from sparseinfer.checkpoints import Recipe, prune_checkpoint
        def half(content, target, *_):
            stream = open(target, "wb") if isinstance(target, os.PathLike) else target
            stream.write(b"half of a file")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save = half
        safetensors.torch.save_file = half
        prune_checkpoint({str(path)!r}, Recipe(amount=0.5), in_place=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    # And what the crash left behind is gone after the next write.
    prune_checkpoint(path, Recipe(amount=0.5), in_place=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert int((load_sparse(path)["fc.weight"] == 0).sum()) == 6


def test_the_input_is_not_modified(tmp_path):
    for name, save in (("model.pth", torch.save), ("model.safetensors", save_file)):
        path = tmp_path / name
        save(STATE, path)
        before = path.read_bytes(), path.stat().st_mtime_ns
        prune_checkpoint(path, Recipe(amount=0.5), tmp_path / "new" / name)
        prune_checkpoint(path, Recipe(amount=0.5))
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.slow
def test_what_was_read_outlives_the_file(tmp_path):
    for name, save in (("model.pth", torch.save), ("model.safetensors", save_file)):
        save({"fc.weight": torch.ones(1000, 1000)}, tmp_path / name)
        script = f"""
            from sparseinfer.checkpoints import load_sparse
            state = load_sparse({str(tmp_path / name)!r})
            open({str(tmp_path / name)!r}, "w").close()
            assert float(state["fc.weight"].sum()) == 1e6
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_in_place_replaces_a_linked_file_and_keeps_the_link(tmp_path):
    save_file(STATE, tmp_path / "blob")
    link = tmp_path / "model.safetensors"
    link.symlink_to("blob")
    prune_checkpoint(link, Recipe(amount=0.5), in_place=True)
    assert link.is_symlink()
    assert int((load_file(tmp_path / "blob")["fc.weight"] == 0).sum()) == 6


def test_the_output_cannot_be_the_input(tmp_path):
    torch.save(STATE, tmp_path / "model.pth")
    (tmp_path / "link.pth").symlink_to("model.pth")
    for name in ("model.pth", "link.pth"):
        with pytest.raises(CheckpointError, match="other than the input, got the same; try"):
            prune_checkpoint(tmp_path / "model.pth", Recipe(amount=0.5), tmp_path / name)


def test_the_output_cannot_be_a_file_of_the_input(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    before = path.read_bytes()
    for source, target in ((path, tmp_path), (tmp_path, path), (tmp_path, tmp_path)):
        with pytest.raises(CheckpointError, match="other than the input, got the same; try"):
            prune_checkpoint(source, Recipe(amount=0.5), target, format="sparse")
    assert path.read_bytes() == before

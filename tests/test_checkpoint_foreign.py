"""Files of other frameworks: told what they are by their content, and what to do about them."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparseinfer import cli
from sparseinfer.checkpoints import CheckpointError, load_sparse
from sparseinfer.checkpoints.foreign import recognise

STATE = {"fc.weight": torch.eye(4)}


def protobuf_onnx(path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    helper = onnx.helper
    graph = helper.make_graph([], "g", [], [])
    onnx.save(helper.make_model(graph, producer_name="pytorch"), path)


def hdf5(path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w") as file:
        file["layer/kernel"] = np.eye(3)


def keras(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, b"{}")


def saved_model(path):
    # schema version 1, then a meta graph
    path.write_bytes(b"\x08\x01\x12\x40\x0a\x3e\x0a\x3c" + bytes(60))


def graph_def(path):
    # a node with a name and an operation
    path.write_bytes(b"\x0a\x16\x0a\x05input\x12\x0bPlaceholder" + bytes(60))


def tflite(path):
    path.write_bytes(struct.pack("<I", 28) + b"TFL3" + bytes(60))


def gguf(path):
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


def scripted(path):
    torch.jit.save(torch.jit.script(nn.Linear(3, 3)), path)


def exported(path):
    torch.export.save(torch.export.export(nn.Linear(3, 3), (torch.ones(1, 3),)), path)


def numpy_archive(path):
    np.savez(path.with_suffix(".npz"), w=np.eye(3))
    if path.suffix != ".npz":
        path.with_suffix(".npz").rename(path)


def tar(path):
    (path.parent / "inner").write_bytes(b"x")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "inner", "inner")
    (path.parent / "inner").unlink()


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/model.pth", b"x")


def lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


FORMATS = [
    (protobuf_onnx, ".onnx", "an ONNX model", "onnx2torch"),
    (hdf5, ".h5", "an HDF5 file", "PyTorch model of the same layers"),
    (keras, ".keras", "a Keras archive", "PyTorch model of the same layers"),
    (saved_model, ".pb", "a TensorFlow graph", "from_tf=True"),
    (graph_def, ".pb", "a TensorFlow graph", "from_tf=True"),
    (tflite, ".tflite", "a TensorFlow Lite model", "converted from"),
    (gguf, ".gguf", "a GGUF file", "gguf_file=name"),
    (scripted, ".pt", "a TorchScript archive", r"torch.jit.load\(path\).state_dict"),
    (exported, ".pt2", "a program by torch.export", r"torch.export.load\(path\).state_dict"),
    (numpy_archive, ".npz", "a NumPy archive", "torch.from_numpy"),
    (tar, ".tar", "an archive", "unpacking it first"),
    (zipped, ".zip", "an archive", "unpacking it first"),
    (lfs, ".bin", "a pointer of Git LFS", "git lfs pull"),
    (lambda path: path.write_bytes(gzip.compress(b"x" * 99)), ".gz", "an archive", "unpacking"),
    (lambda path: path.write_text("<html>Not found"), ".html", "text", "file of weights"),
    (lambda path: path.write_text("größe: " * 999), ".txt", "text", "file of weights"),
    (lambda path: path.write_text(json.dumps({"a": 1})), ".json", "text", "file of weights"),
]


@pytest.mark.parametrize(("write", "suffix", "what", "advice"), FORMATS)
def test_other_formats_are_known_under_any_name(tmp_path, capsys, write, suffix, what, advice):
    # What has no beginning of its own is known where the name helps: ONNX and GraphDefs.
    named = [f"model{suffix}", "model.pth", "model.safetensors", "model"]
    for name in named[:1] if suffix == ".pb" else named:
        path = tmp_path / name
        write(path)
        with pytest.raises(CheckpointError, match=f"got {what}.*; try .*{advice}"):
            load_sparse(path)
    for command in (["inspect"], ["prune", "--amount", "0.5", "--dry-run"], ["sensitivity"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, str(path)])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == "" and err.count("\n") == 1 and what in err


@pytest.mark.parametrize("suffix", [".onnx", ".pb", ".h5", ".tflite", ".gguf", ".npz", ".pt2"])
def test_names_tell_where_the_content_does_not(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(CheckpointError, match=r"got an? .*; try"):
        load_sparse(path)


@pytest.mark.parametrize("suffix", [".onnx", ".h5", ".zip", ".txt", ".npz", ""])
def test_checkpoints_are_read_under_any_name(tmp_path, suffix):
    for index, zipped in enumerate((True, False)):
        path = tmp_path / f"model{index}{suffix}"
        torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
        assert load_sparse(path).keys() == STATE.keys()
    save_file(STATE, tmp_path / f"model{suffix}")
    assert load_sparse(tmp_path / f"model{suffix}").keys() == STATE.keys()


@pytest.mark.parametrize("length", [0x8B1F, 0x685A42, 0x120108, 0x2A0308])
def test_lengths_of_safetensors_that_look_like_other_formats(tmp_path, length):
    (tmp_path / "model").write_bytes(struct.pack("<Q", length) + b'{"a' + bytes(99))
    assert recognise(tmp_path / "model") is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["saved_model.pb"], "got a TensorFlow SavedModel; try"),
        (["adapter_model.safetensors"], r"got an adapter of PEFT; try merge_and_unload\(\)"),
        (["weights.pth"], "got one with weights.pth; try .*weights.pth"),
        (["data.pkl", "byteorder"], "got an unpacked file by torch.save; try the file itself"),
        ([], "got none; try the path of a file"),
    ],
)
def test_folders_without_a_checkpoint(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message):
        load_sparse(tmp_path)
    assert len(os.listdir(tmp_path)) == len(names)

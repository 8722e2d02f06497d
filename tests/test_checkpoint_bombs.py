"""Small files that declare much: refused by the bytes that are there, before any allocation."""

from __future__ import annotations

import collections
import json
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparseinfer import load_converted, pack
from sparseinfer.checkpoints import CheckpointError, load_sparse, save_sparse
from sparseinfer.checkpoints.facts import inspect_checkpoint

STATE = {"fc.weight": torch.arange(12.0).reshape(3, 4)}


def into_a_model(path):
    return load_converted(nn.Sequential(nn.Linear(4, 3)), path, strict=False)


def refused(path, message, others=(into_a_model,)):
    for read in (load_sparse, inspect_checkpoint, *others):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        text = str(caught.value)
        assert "\n" not in text and "expected" in text and "got" in text and "try" in text


def rewritten(path, change):
    """A file by torch.save with another pickle, and other members where `change` adds some."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def replaced(path, old, new):
    def change(members):
        (name,) = (name for name in members if name.endswith("data.pkl"))
        assert old in members[name]
        members[name] = members[name].replace(old, new)

    rewritten(path, change)


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


# --- files by torch.save


@pytest.mark.parametrize("count", [13, 2**31, 2**62, -1])
def test_a_storage_of_more_than_its_record(tmp_path, count):
    replaced(tmp_path / "model.pth", b"K\x0ctq", number(count) + b"tq")
    refused(tmp_path / "model.pth", "expected a storage of 48 bytes at most, got")


@pytest.mark.parametrize("shape", [(3, 5), (2**15, 2**15), (2**62, 2**62), (-1, 4)])
def test_a_tensor_of_more_than_its_storage(tmp_path, shape):
    sizes = b"".join(map(number, shape)) + b"\x86"
    replaced(tmp_path / "model.pth", b"K\x03K\x04\x86", sizes)
    refused(tmp_path / "model.pth", "expected (a tensor within its 48|sizes of 0 or more)")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "made", [bytearray, torch.FloatTensor, torch.UntypedStorage, torch.ByteStorage, torch.Tensor]
)
def test_allocations_of_a_length_alone(tmp_path, made, zipped):
    class Allocation:
        def __reduce__(self):
            return (made, (2**31,))

    path = tmp_path / "model.pth"
    torch.save({**STATE, "x": Allocation()}, path, _use_new_zipfile_serialization=zipped)
    refused(path, "expected values for all that it allocates")


def test_a_pickle_that_names_a_distant_place(tmp_path):
    replaced(tmp_path / "model.pth", b"}q\x00", b"}r\xff\xff\xff\xff")
    refused(tmp_path / "model.pth", "expected places as many as its bytes")


def test_a_pickle_that_announces_more_than_the_file(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x")
    refused(tmp_path / "model.bin", "cannot be read")


def overlapping(path, count):
    """An archive whose directory names one member many times."""
    torch.save(STATE, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = next(m for m in archive.infolist() if m.filename.endswith("data/0"))
        start = archive.start_dir
    entries = b""
    for index in range(count):
        name = f"model/data/{index}".encode() if index else b"model/data.pkl"
        entries += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, entry.CRC, entry.file_size,
            entry.file_size, len(name), 0, 0, 0, 0, 0, entry.header_offset,
        ) + name  # fmt: skip
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0)
    path.write_bytes(content[:start] + entries + end)


def test_members_that_overlap(tmp_path):
    overlapping(tmp_path / "model.pth", 1000)
    refused(tmp_path / "model.pth", "expected members that lie apart")


def test_views_of_one_storage_that_add_up(tmp_path):
    base = torch.zeros(100_000)
    state = {f"fc{i}.weight": base[i : i + 90_000].view(300, 300) for i in range(500)}
    torch.save(state, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "expected tensors of at most 16 times the file")


@pytest.mark.parametrize("view", ["expanded", "overlapping"])
def test_what_may_be_masks_alone_is_looked_at_within_bounds(tmp_path, view):
    whole = torch.zeros(1).expand(2**40) if view == "expanded" else torch.zeros(2**11).as_strided(
        (2**10, 2**10, 2**10), (1, 1, 0)
    )  # fmt: skip
    torch.save({"fc": {"weight": whole}}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "expected tensors of at most 16 times the file", others=())


def test_the_same_tensor_under_many_names_is_no_bomb(tmp_path):
    shared = torch.eye(300)
    torch.save({f"fc{i}.weight": shared for i in range(500)}, tmp_path / "model.pth")
    found = inspect_checkpoint(tmp_path / "model.pth").tensors
    assert [facts.name for facts in found] == [f"fc{i}.weight" for i in range(500)]
    assert {facts.zeros for facts in found} == {300 * 299}


def test_dicts_within_dicts_are_gone_through_once(tmp_path):
    inner: dict = {"note": "no tensor"}
    for _ in range(6):
        inner = {f"level{i}": inner for i in range(300)}
    torch.save(inner, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "expected a dict of tensors", others=())
    inner["itself"] = inner
    torch.save({"model": STATE, "rest": inner}, tmp_path / "model.pth")
    assert load_sparse(tmp_path / "model.pth").keys() == STATE.keys()


def test_deep_nesting(tmp_path):
    depth = 100_000
    pickled = b"\x80\x02" + b"(l" * depth + b"a" * (depth - 1) + b"."

    def change(members):
        (name,) = (name for name in members if name.endswith("data.pkl"))
        members[name] = pickled

    rewritten(tmp_path / "model.pth", change)
    refused(tmp_path / "model.pth", "expected a state_dict|cannot be read")


def test_an_archive_within_an_archive(tmp_path):
    torch.save(STATE, tmp_path / "inner.pth")
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.write(tmp_path / "inner.pth", "model.pth")
    refused(tmp_path / "model.pth", "expected")


def test_what_torch_saves_beside_plain_tensors_passes(tmp_path):
    state = {
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "complex": torch.ones(3, dtype=torch.complex64),
        "float8": torch.ones(4).to(torch.float8_e4m3fn),
        "uint16": torch.ones(3, dtype=torch.uint16),
        "sparse": torch.eye(3).to_sparse(),
        "strided": torch.ones(9)[::2],
        "empty": torch.ones(0, 3),
        "meta": torch.ones(3, device="meta"),
        "steps": {"bytes": b"x", "size": torch.Size([1]), "ints": {1, 2}},
        "counts": collections.Counter("aab"),
    }
    torch.save(state, tmp_path / "model.pth")
    names = {facts.name for facts in inspect_checkpoint(tmp_path / "model.pth").tensors}
    assert names == state.keys() - {"steps", "counts"}


# --- safetensors


@pytest.mark.parametrize(
    "entries",
    [
        {"w": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}},
        {"w": {"dtype": "F32", "shape": [2**31, 2**31, 4], "data_offsets": [0, 48]}},
        {"w": {"dtype": "F32", "shape": [3, -4], "data_offsets": [0, 48]}},
        {f"w{i}": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]} for i in range(99)},
        {"w": {"dtype": "F32", "shape": [2**64, 0], "data_offsets": [0, 0]}},
    ],
)
def test_headers_of_safetensors(tmp_path, entries):
    header = json.dumps(entries).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(48)
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path / "model.safetensors", "expected a safetensors file")


@pytest.mark.parametrize(
    "shape", [[2**31, 2**31], [2**62, 4], [2**40, 8], [3, 5], [0, 8], [-3, -8], [1] * 9]
)
def test_shapes_of_bitmasks(tmp_path, shape):
    save_sparse({"fc.weight": torch.eye(8)}, tmp_path / "model.safetensors")
    parts = {
        "fc.compressed": torch.ones(8),
        "fc.bitmask": torch.ones(8, 1, dtype=torch.uint8),
        "fc.row_offsets": torch.arange(8),
        "fc.shape": torch.tensor(shape),
    }
    save_file(parts, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "fc: expected .*; try another copy", others=())


@pytest.mark.parametrize("part", ["compressed", "bitmask", "row_offsets", "shape"])
@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_parts_of_bitmasks_without_values(tmp_path, part, kind):
    parts = {
        "fc.compressed": torch.ones(8),
        "fc.bitmask": torch.eye(8, dtype=torch.uint8)[:, :1].contiguous(),
        "fc.row_offsets": torch.arange(8),
        "fc.shape": torch.tensor([8, 8]),
    }
    old = parts[f"fc.{part}"]
    parts[f"fc.{part}"] = old.to("meta") if kind == "meta" else old.to_sparse()
    torch.save(parts, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", f"fc: expected a dense {part}", others=())


# --- packed weights


def wide():
    """A packed weight of 16 MB in less than a kilobyte."""
    return pack(torch.zeros(1, 2**22), "csr")


def test_a_packed_weight_that_would_take_much_is_looked_at_and_not_loaded(tmp_path):
    state = {f"fc{i}.packed": wide() for i in range(20)}
    torch.save(state, tmp_path / "model.pth")
    found = inspect_checkpoint(tmp_path / "model.pth").tensors
    assert [facts.shape for facts in found] == [[1, 2**22]] * 20
    assert {facts.sparsity for facts in found} == {1.0}
    assert found[-1].pattern == "packed as csr" and found[-1].prunable
    with pytest.raises(CheckpointError, match=r"1024 times its bytes, got \[1, 4194304\] in"):
        load_sparse(tmp_path / "model.pth")


def test_packed_weights_of_few_non_zeros_are_unpacked(tmp_path):
    weight = torch.zeros(512, 512)
    weight[torch.randint(512, (260,)), torch.randint(512, (260,))] = 1.0
    torch.save({f"fc{i}.packed": pack(weight, "csr") for i in range(4)}, tmp_path / "model.pth")
    assert all(torch.equal(w, weight) for w in load_sparse(tmp_path / "model.pth").values())
    found = inspect_checkpoint(tmp_path / "model.pth").tensors
    assert {facts.zeros for facts in found} == {512 * 512 - int(weight.sum())}


# --- all of them at once, in a process of its own


@pytest.mark.slow
def test_the_memory_that_hostile_files_take_is_bounded(tmp_path):
    torch.save({f"fc{i}.packed": wide() for i in range(100)}, tmp_path / "packed.pth")
    overlapping(tmp_path / "overlap.pth", 60_000)
    replaced(tmp_path / "sizes.pth", b"K\x03K\x04\x86", number(2**14) * 2 + b"\x86")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"x": 1}))
    script = f"""
        import resource
        from pathlib import Path
        from sparseinfer.checkpoints import CheckpointError
        from sparseinfer.checkpoints.facts import inspect_checkpoint
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sorted(Path({str(tmp_path)!r}).iterdir()):
            try:
                inspect_checkpoint(path)
            except CheckpointError:
                pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    ran = [sys.executable, "-c", textwrap.dedent(script)]
    kilobytes = int(subprocess.run(ran, capture_output=True, check=True).stdout)
    assert kilobytes < 300_000

"""Small whole files of every kind that is read, and ways to damage them."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from sparseinfer import SparseConv2d, SparseLinear, convert_to_sparse, pack, save_sparse
from sparseinfer.checkpoints.bitmask import compress
from sparseinfer.quantize import ActivationScale

__all__ = ["damage", "make_corpus", "model"]

_NUMBERS = (0, 1, 7, 8, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)


def model() -> nn.Module:
    """The model whose converted state_dict is among the files."""
    return nn.Sequential(nn.Linear(16, 8), nn.Conv2d(2, 4, 3))


def narrow_model() -> nn.Module:
    """The same with a scaled int8 layer, and one of bfloat16."""
    dense, conv = model().children()
    scale = ActivationScale(0.01, 3)
    return nn.Sequential(
        SparseLinear.from_dense(dense, weights="int8", input_scale=scale),
        SparseConv2d.from_dense(conv, weights="bfloat16", activations="bfloat16"),
    )


def make_corpus(folder: Path) -> dict[str, bytes]:
    """Whole files by name; what is left in `folder` is of no interest."""
    torch.manual_seed(0)
    weight = torch.randn(8, 16) * (torch.rand(8, 16) < 0.3)
    state = {"fc.weight": weight, "fc.bias": torch.ones(8), "n": torch.tensor(3)}
    masked = {"fc.weight_orig": weight, "fc.weight_mask": (weight != 0).float()}
    beside = {"fc.weight": weight + 1, "fc.mask": weight != 0}
    packed = {"fc.packed": pack(weight), "gate.packed": pack(weight, "csr")}
    converted = convert_to_sparse(model(), min_speedup=0, cache=False).state_dict()
    others = {
        "sparse": torch.eye(3).to_sparse(),
        "view": weight[::2],
        "size": torch.Size([1, 2]),
        "half": weight.bfloat16(),
    }
    save_sparse({**state, "conv.weight": weight.view(8, 4, 4)}, folder / "model.safetensors")
    save_sparse(narrow_model(), folder / "narrow.safetensors")
    parts = {f"fc.{part}": tensor for part, tensor in compress(weight).items()}
    found = {
        "bitmask.safetensors": (folder / "model.safetensors").read_bytes(),
        "narrow.safetensors": (folder / "narrow.safetensors").read_bytes(),
        "plain.safetensors": save(state),
        "packed.safetensors": save(packed),
        "converted.safetensors": save(converted),
    }
    saved = {
        "state": state, "nested": {"epoch": 1, "model": state, "masks": {"fc": weight != 0}},
        "masked": masked, "beside": beside, "packed": packed, "converted": dict(converted),
        "others": {**state, **others}, "parts": parts,
    }  # fmt: skip
    for name, content in saved.items():
        for suffix, zipped in ((".pth", True), (".bin", False)):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=zipped)
            found[name + suffix] = stream.getvalue()
    index = {"weight_map": {"fc.weight": "one.safetensors", "fc.bias": "two.pth"}}
    found["model.safetensors.index.json"] = json.dumps(index).encode()
    return found


def damage(content: bytes, name: str, corpus: dict[str, bytes], draw: random.Random) -> bytes:
    """A file with a few changes of its bytes, or of what its container holds, put together anew."""
    if draw.random() < 0.5:
        if content.startswith(b"PK"):
            return _damaged_members(content, corpus, draw)
        if name.endswith(".safetensors"):
            length = struct.unpack("<Q", content[:8])[0]
            header = _changed(content[8 : 8 + length], corpus, draw)
            return struct.pack("<Q", len(header)) + header + content[8 + length :]
    return _changed(content, corpus, draw)


def _damaged_members(content: bytes, corpus: dict[str, bytes], draw: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    # Most of what can go wrong is in the pickle.
    pickles = [i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")]
    place = draw.choice(pickles) if draw.random() < 0.7 else draw.randrange(len(members))
    members[place] = (members[place][0], _changed(members[place][1], corpus, draw))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, inner in members:
            archive.writestr(name, inner)
    return stream.getvalue()


def _changed(content: bytes, corpus: dict[str, bytes], draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        place = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 2, 4, 8, 16, 64))
        kind = draw.randrange(7)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 2:
            number = draw.choice(_NUMBERS)
            width = draw.choice("BHIQ")
            size = struct.calcsize(width)
            changed[place : place + size] = struct.pack(f"<{width}", number % (1 << 8 * size))
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = changed[place : place + length]
        elif kind == 5:
            # A number in text, as in a header or an index.
            changed[place:place] = str(draw.choice(_NUMBERS)).encode()
        else:
            other = corpus[draw.choice(sorted(corpus))]
            start = draw.randrange(len(other))
            changed[place : place + length] = other[start : start + length]
    return bytes(changed[: draw.randrange(len(changed) + 1)] if draw.random() < 0.05 else changed)

"""What a file by torch.save declares, held against its bytes before torch allocates any of it.

The pickle is gone through once with nothing but stand-ins: no class of it is imported, no tensor
made. torch.load then reads it, with weights_only.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import torch

from sparseinfer.checkpoints.errors import CheckpointError

__all__ = ["check_archive", "check_stream"]

_LEGACY_PICKLES = 4
"""Of a file before the zip format: magic number, version, machine, and the object."""

_HEADER = 30
"""Bytes before the name of a zip's member."""

_ITEMSIZES = {
    "UntypedStorage": 1, "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2,
    "HalfStorage": 2, "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8,
    "DoubleStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt8Storage": 1,
    "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip
"""Bytes an element of torch's types of storage; a tensor in an untyped one names its own type."""

_MAKES_OF_STORAGE = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_qtensor",
}


def check_archive(stream: BinaryIO, size: int) -> None:
    """Check a zip archive by torch.save: its members lie apart, its tensors within them.

    Raises:
        CheckpointError: it is damaged or compressed, or declares more than it holds.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            _check_members(members, size)
            for member in members:
                if member.filename.endswith("/data.pkl") or member.filename == "data.pkl":
                    root = member.filename.removesuffix("data.pkl")
                    records = {
                        other.filename.removeprefix(f"{root}data/"): other.file_size
                        for other in members
                        if other.filename.startswith(f"{root}data/")
                    }
                    content = archive.read(member)
                    _check_pickle(content, size, records)
    except CheckpointError:
        raise
    # The module raises whatever arbitrary bytes lead it to.
    except Exception as error:
        raise CheckpointError(
            f"expected a file by torch.save, got a damaged archive ({error}); "
            "try another copy of the file"
        ) from error


def check_stream(stream: BinaryIO, size: int) -> None:
    """Check a file by torch.save of before the zip format: a few pickles, then all values.

    Raises:
        CheckpointError: it is damaged, or declares more than it holds.
    """
    bounded = _Bounded(stream, size)
    for _ in range(_LEGACY_PICKLES):
        start = stream.tell()
        try:
            for _ in pickletools.genops(bounded):  # type: ignore[arg-type]
                pass
        # It raises whatever arbitrary bytes lead it to.
        except Exception as error:
            raise _unreadable(error) from error
        length = stream.tell() - start
        stream.seek(start)
        _check_pickle(stream.read(length), size, None)


class _Bounded:
    """A stream that allocates no more than there is to read, whatever length is asked for."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size
        self.readline, self.tell = stream.readline, stream.tell

    def read(self, count: int) -> bytes:
        return self.stream.read(max(0, min(count, self.size - self.stream.tell())))


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    names = [member.filename for member in members]
    # torch.save stores; a compressed member could grow a thousandfold.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            "expected a file by torch.save, got an archive with compressed members; "
            "try the file inside"
        )
    if len(set(names)) != len(names):
        raise _declares("members of different names", "some of the same")
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise _declares("members that lie apart", "some that overlap")
        if member.file_size != member.compress_size:
            raise _declares("stored members of one size", "other sizes")
        end = member.header_offset + _HEADER + len(member.filename.encode()) + member.file_size
    if end > size:
        raise _declares(f"members within its {size} bytes", f"some up to byte {end}")


def _check_pickle(content: bytes, size: int, records: Mapping[str, int] | None) -> None:
    try:
        for code, argument, _ in pickletools.genops(content):
            # The unpickler allocates as many places as the largest one named.
            if code.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(content):
                raise _declares("places as many as its bytes at most", f"place {argument}")
        _StandIns(content, size, records).load()
    except CheckpointError:
        raise
    # It raises whatever arbitrary bytes lead it to.
    except Exception as error:
        raise _unreadable(error) from error


class _StandIn:
    """In the place of whatever a pickle names: it takes what is done to it and does nothing."""

    name = ""
    sizes: _StandIns

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        if cls.name in _MAKES_OF_STORAGE:
            typed = cls.name.endswith("_v3")
            itemsize = getattr(torch, arguments[6].name.rpartition(".")[2]).itemsize if typed else 0
            _check_view(itemsize, *arguments[:4])
        elif cls.name == "torch.Size":
            return tuple(*arguments)
        elif any(type(argument) is int for argument in arguments) and _allocates(cls.name):
            raise _declares("values for all that it allocates", f"{cls.name} of a length alone")
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    add = append


class _Storage:
    def __init__(self, nbytes: int, itemsize: int) -> None:
        self.nbytes, self.itemsize = nbytes, itemsize


class _StandIns(pickle.Unpickler):
    def __init__(self, content: bytes, size: int, records: Mapping[str, int] | None) -> None:
        super().__init__(io.BytesIO(content))
        self.left, self.records = size, records
        self.storages: dict[Any, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type("_Named", (_StandIn,), {"name": f"{module}.{name}"})

    def persistent_load(self, found: Any) -> Any:
        # ("storage", type, key, location, elements), and in older files a view's place in it.
        kind, key, count = found[1], found[2], found[4]
        if key not in self.storages:
            itemsize = _ITEMSIZES[kind.name.rpartition(".")[2]]
            nbytes = count * itemsize
            held = self.left if self.records is None else self.records.get(str(key), 0)
            if type(count) is not int or not 0 <= nbytes <= min(held, self.left):
                raise _declares(f"a storage of {held} bytes at most", f"{nbytes}")
            self.left -= nbytes
            self.storages[key] = _Storage(nbytes, itemsize)
        return self.storages[key]


def _check_view(itemsize: int, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
    if isinstance(storage, _Storage):
        numbers = [offset, *shape, *strides]
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise _declares("sizes of 0 or more", f"{list(shape)} by {list(strides)}")
        steps = sum((count - 1) * step for count, step in zip(shape, strides, strict=True))
        last = offset + steps + 1 if 0 not in shape else 0
        reach = last * (itemsize or storage.itemsize)
        if reach > storage.nbytes:
            raise _declares(f"a tensor within its {storage.nbytes} bytes", f"one of {reach}")


def _allocates(name: str) -> bool:
    """Whether a class makes as many bytes or elements as the number it is called with."""
    return name.endswith((".bytearray", "Tensor", "Storage"))


def _declares(expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        f"expected {expected}, got {got}, in a file by torch.save; try another copy of the file"
    )


def _unreadable(error: Exception) -> CheckpointError:
    lines = str(error).splitlines()
    reason = lines[0][:200] if lines else type(error).__name__
    return CheckpointError(
        f"expected a file by torch.save, got one that cannot be read ({reason}); "
        "try another copy of the file"
    )

"""Files of other frameworks and formats: known by what is in them, with what to do about each."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

__all__ = ["recognise", "recognise_folder"]

_START = 4096

_TO_TORCH = "torch.save(model.state_dict(), 'state.pth')"

ONNX = (
    "an ONNX model",
    f"onnx2torch.convert(path), then {_TO_TORCH}, or the model that it was exported from",
)
HDF5 = (
    "an HDF5 file (Keras)",
    f"the weights in a PyTorch model of the same layers, then {_TO_TORCH}",
)
KERAS = ("a Keras archive", HDF5[1])
TENSORFLOW = (
    "a TensorFlow graph",
    "transformers' from_pretrained(folder, from_tf=True), or the weights in a PyTorch model, then "
    f"{_TO_TORCH}",
)
TFLITE = ("a TensorFlow Lite model", "the model that it was converted from")
GGUF = (
    "a GGUF file, whose weights are quantised",
    "transformers' from_pretrained(folder, gguf_file=name), which dequantises, then "
    "save_pretrained",
)
TORCHSCRIPT = (
    "a TorchScript archive",
    "torch.save(torch.jit.load(path).state_dict(), 'state.pth')",
)
EXPORTED = (
    "a program by torch.export",
    "torch.save(torch.export.load(path).state_dict, 'state.pth')",
)
NUMPY = (
    "a NumPy archive",
    "torch.save({name: torch.from_numpy(a) for name, a in np.load(path).items()}, 'state.pth')",
)
ARCHIVE = ("an archive", "unpacking it first, and a file of it")
TEXT = ("text", "the file of weights itself")

_MAGICS: tuple[tuple[bytes, int, tuple[str, str]], ...] = (
    (b"\x89HDF\r\n\x1a\n", 0, HDF5),
    (b"GGUF", 0, GGUF),
    (b"TFL3", 4, TFLITE),
    (b"\x93NUMPY", 0, NUMPY),
    (b"\x1f\x8b", 0, ARCHIVE),
    (b"BZh", 0, ARCHIVE),
    (b"\xfd7zXZ\x00", 0, ARCHIVE),
    (b"\x28\xb5\x2f\xfd", 0, ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", 0, ARCHIVE),
    (b"Rar!", 0, ARCHIVE),
    (b"ustar", 257, ARCHIVE),
)

_ENDINGS = {
    ".onnx": ONNX, ".h5": HDF5, ".hdf5": HDF5, ".keras": KERAS, ".pb": TENSORFLOW,
    ".tflite": TFLITE, ".gguf": GGUF, ".npz": NUMPY, ".npy": NUMPY, ".zip": ARCHIVE,
    ".pt2": EXPORTED,
}  # fmt: skip


def recognise(path: Path) -> str | None:
    """What a file is that is neither by torch.save nor safetensors: "got ...; try ..." in words.

    Raises:
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.bin")
        >>> _ = path.write_text("Not found")
        >>> recognise(path)
        "text ('Not found') that cannot be read as one; try the file of weights itself"
    """
    with path.open("rb") as stream:
        start = stream.read(_START)
    if _is_pickle_or_safetensors(start):
        return None
    for magic, offset, kind in _MAGICS:
        if start[offset:].startswith(magic):
            return _words(kind)
    if start.startswith(b"PK\x03\x04"):
        found = _of_archive(path)
        return None if found is None else _words(found)
    if _is_protobuf(start):
        kind = TENSORFLOW if path.suffix == ".pb" or start[:2] == b"\x08\x01" else ONNX
        return _words(ONNX if path.suffix == ".onnx" else kind)
    if start.startswith(b"version https://git-lfs"):
        return _words(("a pointer of Git LFS in the place of the file", "git lfs pull"))
    if _is_text(start):
        line = next((line.strip() for line in start.decode(errors="ignore").splitlines()), "")
        return _words((f"{TEXT[0]} ({line[:40]!r}) that cannot be read as one", TEXT[1]))
    # By the name where nothing else tells: protocol buffers begin with whatever comes first.
    if path.suffix.lower() in _ENDINGS:
        return _words(_ENDINGS[path.suffix.lower()])
    return None


def recognise_folder(folder: Path) -> str | None:
    """What a folder is that holds no checkpoint of PyTorch, in the words of `recognise`."""
    names = {entry.name for entry in folder.iterdir()}
    if "saved_model.pb" in names:
        return _words(("a TensorFlow SavedModel", TENSORFLOW[1]))
    if "data.pkl" in names and "byteorder" in names:
        return _words(("an unpacked file by torch.save", "the file itself"))
    if "adapter_model.safetensors" in names or "adapter_model.bin" in names:
        return _words(
            ("an adapter of PEFT", "merge_and_unload() of the whole model, then save_pretrained")
        )
    suffixes = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", *_ENDINGS)
    found = sorted(name for name in names if name.endswith(suffixes))
    return None if not found else f"one with {found[0]}; try {folder / found[0]}"


def _words(kind: tuple[str, str]) -> str:
    return f"{kind[0]}; try {kind[1]}"


def _of_archive(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # Whatever is wrong with it is told where it is read.
    except Exception:
        return None
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return TORCHSCRIPT
    if "serialized_exported_program.json" in last or "archive_format" in last:
        return EXPORTED
    if "model.weights.h5" in last:
        return KERAS
    if "data.pkl" in last:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return NUMPY
    return ARCHIVE


def _is_protobuf(start: bytes) -> bool:
    """Whether a file begins as ONNX (ir_version, producer) or a TensorFlow graph (meta graph)."""
    if len(start) < 4:
        return False
    if start[0] == 0x08 and start[1] < 0x20:
        # ir_version of ONNX or the SavedModel's schema, then a field of bytes or a number.
        return start[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    # A GraphDef: a node, whose name comes first.
    return start[0] == 0x0A and 0x0A in start[2:4] and b"\x12" in start[:256]


def _is_text(start: bytes) -> bool:
    if b"\0" in start:
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut.
        if error.start < len(start) - 3:
            return False
        start = start[: error.start]
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in start)
    return bool(start) and controls == 0


def _is_pickle_or_safetensors(start: bytes) -> bool:
    if start[:1] == b"\x80":
        return True
    return len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 10**8

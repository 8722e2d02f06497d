"""The demo's data: IDX files (Fashion-MNIST), which are not trusted, or scikit-learn's digits."""

from __future__ import annotations

import gzip
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

# Where Debian's package dataset-fashion-mnist installs its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

IDX_FILES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}
CLASSES = 10
MAX_IMAGES = 1_000_000
IMAGE_SIDES = range(8, 65)
MIN_TRAIN_IMAGES = 100


class DataError(ValueError):
    """The data named cannot be used; the message says why in one line."""


@dataclass(frozen=True)
class Dataset:
    """Images [count, 1, height, width] float32 normalised by the training mean and deviation.

    Labels are int64 [count] in 0..9. `validation` images are held out of the training images, so
    that the curve drawn during training never looks at the test images.
    """

    name: str
    source: str
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    available_train_images: int

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.train_images.shape[2]), int(self.train_images.shape[3])


def load(folder: Path | None, seed: int, train_images: int | None = None) -> Dataset:
    """Load IDX files from `folder`, or Debian's Fashion-MNIST, or scikit-learn's digits.

    `train_images` limits the images trained on (chosen at random by `seed`); None keeps all.

    Raises:
        DataError: a file is missing or is not a valid IDX file of the images expected.
    """
    if folder is None and (DEBIAN_FASHION_MNIST / f"{IDX_FILES['train images']}.gz").is_file():
        folder = DEBIAN_FASHION_MNIST
    if folder is None:
        return _digits(seed, train_images)
    return _idx_folder(folder, seed, train_images)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Return the uint8 array of an IDX file, gzipped or not.

    `dims`: 3 for images [count, height, width], 1 for labels [count].

    At most one byte more than the header announces is ever read.

    Raises:
        DataError: unless the header says unsigned bytes of that rank and of sane sizes, and exactly
            as many bytes follow.

    Source: the IDX file format, published with MNIST.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: expected a regular file, got something else")
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not gzipped:
                return _read_idx_stream(raw, path, dims)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read_idx_stream(stream, path, dims)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read: {reason}") from error


def _read_idx_stream(stream: BinaryIO | gzip.GzipFile, path: Path, dims: int) -> np.ndarray:
    header = stream.read(4)
    if len(header) < 4:
        raise DataError(f"{path}: expected an IDX header, got a file of {len(header)} bytes")
    if header[:3] != b"\x00\x00\x08" or header[3] != dims:
        raise DataError(
            f"{path}: expected the IDX magic 00 00 08 {dims:02x} (unsigned bytes, {dims} "
            f"dimension{'s' if dims > 1 else ''}), got {header.hex(' ')}"
        )
    sizes_bytes = stream.read(4 * dims)
    if len(sizes_bytes) < 4 * dims:
        raise DataError(f"{path}: expected {dims} sizes in the IDX header, got a truncated file")
    sizes = struct.unpack(f">{dims}I", sizes_bytes)
    # Sizes are checked before anything of that size is read or allocated.
    if not 1 <= sizes[0] <= MAX_IMAGES:
        raise DataError(f"{path}: expected 1 to {MAX_IMAGES} items, got {sizes[0]}")
    if any(side not in IMAGE_SIDES for side in sizes[1:]):
        raise DataError(
            f"{path}: expected images of {IMAGE_SIDES[0]} to {IMAGE_SIDES[-1]} pixels a side, "
            f"got {sizes[1]}x{sizes[2]}"
        )
    wanted = int(np.prod(sizes, dtype=np.int64))
    content = stream.read(wanted + 1)
    if len(content) != wanted:
        found = "more" if len(content) > wanted else str(len(content))
        raise DataError(f"{path}: expected {wanted} bytes after the IDX header, got {found}")
    return np.frombuffer(content, dtype=np.uint8).reshape(sizes)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise DataError(f"{folder}: expected a file {name} or {name}.gz, got none")


def _idx_folder(folder: Path, seed: int, limit: int | None) -> Dataset:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with IDX files, got no such folder")
    paths = {role: _find(folder, name) for role, name in IDX_FILES.items()}
    arrays = {role: read_idx(path, 3 if "images" in role else 1) for role, path in paths.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part} images"], arrays[f"{part} labels"]
        where = paths[f"{part} labels"]
        if len(images) != len(labels):
            raise DataError(f"{where}: expected {len(images)} labels, got {len(labels)}")
        if labels.max() >= CLASSES:
            raise DataError(f"{where}: expected labels 0 to {CLASSES - 1}, got {labels.max()}")
    if arrays["train images"].shape[1:] != arrays["test images"].shape[1:]:
        raise DataError(
            f"{paths['test images']}: expected test images of the size of the training images, "
            f"got {arrays['test images'].shape[1:]} and {arrays['train images'].shape[1:]}"
        )
    fashion = folder == DEBIAN_FASHION_MNIST
    return _dataset(
        "Fashion-MNIST" if fashion else "IDX images",
        "Debian package dataset-fashion-mnist" if fashion else str(folder),
        (arrays["train images"], arrays["train labels"]),
        (arrays["test images"], arrays["test labels"]),
        seed,
        limit,
    )


def _digits(seed: int, limit: int | None) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "expected scikit-learn for its digits, got none installed, try "
            "pip install scikit-learn, or --data with a folder of IDX files"
        ) from error
    bunch = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    images, labels = bunch.images[order], bunch.target[order]
    cut = len(labels) * 4 // 5
    return _dataset(
        "digits",
        "scikit-learn",
        (images[:cut], labels[:cut]),
        (images[cut:], labels[cut:]),
        seed,
        limit,
    )


def _dataset(
    name: str,
    source: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    seed: int,
    limit: int | None,
) -> Dataset:
    available = len(train[1])
    if available < MIN_TRAIN_IMAGES:
        raise DataError(
            f"{source}: expected at least {MIN_TRAIN_IMAGES} training images, got {available}"
        )
    order = np.random.default_rng(seed).permutation(available)
    held_out = min(1000, available // 10)
    validation, kept = order[:held_out], order[held_out:][:limit]
    reference = train[0][kept].astype(np.float32)
    mean, deviation = float(reference.mean()), float(reference.std()) or 1.0

    def images(array: np.ndarray) -> Tensor:
        normalised = (array.astype(np.float32) - mean) / deviation
        return torch.from_numpy(normalised).unsqueeze(1).contiguous()

    def labels(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64))

    return Dataset(
        name=name,
        source=source,
        train_images=images(train[0][kept]),
        train_labels=labels(train[1][kept]),
        validation_images=images(train[0][validation]),
        validation_labels=labels(train[1][validation]),
        test_images=images(test[0]),
        test_labels=labels(test[1]),
        available_train_images=available,
    )

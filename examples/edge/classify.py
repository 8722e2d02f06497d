"""Classifies a PPM image by the C library alone: classify.py LIBRARY MODEL.sinf IMAGE.ppm.

What classify.c does, by ctypes: Python's standard library, no torch, no numpy.
"""

import ctypes
import re
import sys
from pathlib import Path


class TensorInfo(ctypes.Structure):
    """`si_tensor_info`, as far as it is needed here: `struct_size` says so."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
        ("bytes", ctypes.c_uint64),
    ]


def main(library_path: str, model_path: str, image_path: str) -> None:
    library = ctypes.CDLL(library_path)
    library.si_last_error.restype = ctypes.c_char_p
    library.si_context_bytes.restype = ctypes.c_uint64

    def call(name: str, *arguments: object) -> None:
        if getattr(library, name)(*arguments) != 0:
            raise SystemExit(library.si_last_error().decode())

    model, context = ctypes.c_void_p(), ctypes.c_void_p()
    call("si_model_load", model_path.encode(), 1, ctypes.byref(model))  # 1: SI_LOAD_MAP
    x_info = TensorInfo(struct_size=ctypes.sizeof(TensorInfo))
    y_info = TensorInfo(struct_size=ctypes.sizeof(TensorInfo))
    call("si_model_input", model, ctypes.c_size_t(0), ctypes.byref(x_info))
    call("si_model_output", model, ctypes.c_size_t(0), ctypes.byref(y_info))

    image = Path(image_path).read_bytes()
    _, channels, rows, columns = x_info.shape[: x_info.ndim]
    header = re.match(rb"P6\s+%d\s+%d\s+255\s" % (columns, rows), image)
    if header is None or channels != 3:
        raise SystemExit(f"expected a binary PPM of {columns} x {rows} pixels")
    pixels = image[header.end() :]
    x = (ctypes.c_float * (3 * rows * columns))()
    for channel in range(3):
        for pixel, byte in enumerate(pixels[channel::3]):
            x[channel * rows * columns + pixel] = byte / 255

    # Everything that a run writes: the context, at a multiple of 64 bytes, and the output.
    size = library.si_context_bytes(model, 1)
    memory = ctypes.create_string_buffer(size + 63)
    aligned = ctypes.c_void_p((ctypes.addressof(memory) + 63) // 64 * 64)
    call("si_context_create", model, aligned, ctypes.c_size_t(size), 1, ctypes.byref(context))
    y = (ctypes.c_float * (y_info.bytes // 4))()
    inputs = (ctypes.c_void_p * 1)(ctypes.addressof(x))
    outputs = (ctypes.c_void_p * 1)(ctypes.addressof(y))
    call("si_context_run", context, inputs, outputs, None)
    best = max(range(len(y)), key=y.__getitem__)
    print(f"class {best}, score {y[best]:g}")
    library.si_model_close(model)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The optional shared library of the CUDA C++ kernels, loaded when it is first needed."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

__all__ = ["PATH", "load", "missing_reasons"]

PATH = Path(__file__).resolve().parent.parent / "libsparseinfer_cuda.so"
"""Where `setup.py` puts the library, beside sparseinfer._C."""

_VERSION = 1
"""What `si_cuda_version` must give: csrc/cuda raises it with every change of the interface."""


def missing_reasons() -> list[str]:
    """Why the library cannot be loaded as far as one can see without loading it; empty if it can.

    Example:
        >>> missing_reasons() == [] or "SPARSEINFER_CUDA=ON" in missing_reasons()[0]
        True
    """
    if PATH.exists():
        return []
    return [
        f"expected the library {PATH.name}, got none built; "
        "try SPARSEINFER_CUDA=ON pip install . where nvcc is on PATH"
    ]


@functools.cache
def load() -> ctypes.CDLL:
    """Load the library and declare its functions; loading it needs no GPU.

    Raises:
        RuntimeError: it was not built, cannot be loaded, or is of another version.

    Example (needs the library):
        >>> load().si_cuda_version()  # doctest: +SKIP
        1
    """
    if reasons := missing_reasons():
        raise RuntimeError(reasons[0])
    try:
        library = ctypes.CDLL(str(PATH))
        version = library.si_cuda_version()
    except (OSError, AttributeError) as error:
        raise RuntimeError(
            f"expected a loadable {PATH.name}, got {error}; try building it again"
        ) from error
    if version != _VERSION:
        raise RuntimeError(
            f"expected version {_VERSION} of {PATH.name}, got {version}; try building it again"
        )
    # Without its argument types ctypes would cut pointers down to 32 bits.
    int_, int64, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    library.si_cuda_error_string.argtypes = [int_]
    library.si_cuda_error_string.restype = ctypes.c_char_p
    library.si_cuda_nm24_workspace.argtypes = [int_] * 4 + [ctypes.POINTER(int_)]
    library.si_cuda_nm24_workspace.restype = int64
    library.si_cuda_nm24_linear.argtypes = [
        int_, pointer, pointer, int64, pointer, pointer, int_, int_, int_, int_, pointer, int64,
        int_, pointer,
    ]  # fmt: skip
    return library

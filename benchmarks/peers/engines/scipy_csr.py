"""scipy.sparse: W as CSR times a channel-major x, on one thread whatever is asked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
from scipy.sparse import csr_matrix

from benchmarks.peers.engines.interface import Array, Layer, Prepared, UnsupportedError


class ScipyCsr:
    """SciPy's sparse matrix product, the bias added in place."""

    def __init__(self, threads: int) -> None:
        """Take no notice of ``threads``: SciPy's product has one."""

    def version(self) -> str:
        """Return SciPy's version."""
        return f"scipy {scipy.__version__}"

    def prepare(self, layer: Layer) -> Prepared:
        """Convert the weight once and copy it.

        Raises:
            UnsupportedError: the layer is a convolution.
        """
        if layer.op != "linear":
            raise UnsupportedError("scipy.sparse has no convolution")
        weight = csr_matrix(layer.weight)
        size = weight.data.nbytes + weight.indices.nbytes + weight.indptr.nbytes
        x, bias = np.ascontiguousarray(layer.x.T), layer.bias[:, None]

        def call_with(weight: csr_matrix) -> Callable[[], Array]:
            def call() -> Array:
                y = weight @ x
                y += bias
                return y

            return call

        calls = [call_with(weight)]
        calls += [call_with(weight.copy()) for _ in range(layer.copies(size) - 1)]
        return Prepared(calls, lambda: np.ascontiguousarray(calls[0]().T), threads=1)

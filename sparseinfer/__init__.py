"""sparseinfer: pruned neural networks that run faster and take less memory.

import sparseinfer

sparse = sparseinfer.convert_to_sparse(model, example_inputs=x)
print(sparseinfer.report(sparse))
"""

from sparseinfer._C import version as _version
from sparseinfer.convert import convert_to_sparse
from sparseinfer.formats import pack, unpack
from sparseinfer.modules import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.report import LayerReport, Report, report

__version__ = _version()

__all__ = [
    "LayerReport",
    "Report",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "__version__",
    "convert_to_sparse",
    "pack",
    "report",
    "unpack",
]

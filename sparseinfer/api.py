"""What `import sparseinfer` brings, in one place: the package imports it at once or when used."""

from sparseinfer._C import version
from sparseinfer.attention import SparseMultiheadAttention
from sparseinfer.checkpoints import load_sparse, load_sparse_into, save_sparse
from sparseinfer.convert import convert_to_sparse
from sparseinfer.formats import pack, unpack
from sparseinfer.load import load_converted
from sparseinfer.modules import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.recurrent import SparseGRU, SparseLSTM, SparseRNN
from sparseinfer.report import LayerReport, Report, report
from sparseinfer.scratch import release_scratch, scratch_bytes
from sparseinfer.to_dense import to_dense
from sparseinfer.transposed import SparseConvTranspose1d, SparseConvTranspose2d

__version__ = version()

__all__ = [
    "LayerReport",
    "Report",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseGRU",
    "SparseLSTM",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseRNN",
    "__version__",
    "convert_to_sparse",
    "load_converted",
    "load_sparse",
    "load_sparse_into",
    "pack",
    "release_scratch",
    "report",
    "save_sparse",
    "scratch_bytes",
    "to_dense",
    "unpack",
]

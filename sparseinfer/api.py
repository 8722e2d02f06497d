"""What `import sparseinfer` brings, in one place: the package imports it at once or when used."""

from sparseinfer.checkpoints import load_sparse, load_sparse_into, save_sparse
from sparseinfer.checkpoints.load_converted import load_converted
from sparseinfer.convert.calibrate import calibrate
from sparseinfer.convert.conversion import convert_to_sparse
from sparseinfer.convert.from_quantized import from_quantized
from sparseinfer.convert.layer_report import LayerReport
from sparseinfer.convert.model_report import Report, report
from sparseinfer.convert.to_dense import to_dense
from sparseinfer.export.compile import compile
from sparseinfer.export.engine import Engine, load_engine
from sparseinfer.export.errors import UnsupportedOperators
from sparseinfer.formats.packed import pack, unpack
from sparseinfer.kernels.scratch import release_scratch, scratch_bytes
from sparseinfer.layers.attention import SparseMultiheadAttention
from sparseinfer.layers.cells import SparseGRUCell, SparseLSTMCell, SparseRNNCell
from sparseinfer.layers.linear_conv import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.layers.recurrent import SparseGRU, SparseLSTM, SparseRNN
from sparseinfer.layers.transposed import SparseConvTranspose1d, SparseConvTranspose2d
from sparseinfer.native import version
from sparseinfer.quantize.fake import add_fake_quant, remove_fake_quant

__version__ = version()

__all__ = [
    "Engine",
    "LayerReport",
    "Report",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseGRU",
    "SparseGRUCell",
    "SparseLSTM",
    "SparseLSTMCell",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseRNN",
    "SparseRNNCell",
    "UnsupportedOperators",
    "__version__",
    "add_fake_quant",
    "calibrate",
    "compile",
    "convert_to_sparse",
    "from_quantized",
    "load_converted",
    "load_engine",
    "load_sparse",
    "load_sparse_into",
    "pack",
    "release_scratch",
    "remove_fake_quant",
    "report",
    "save_sparse",
    "scratch_bytes",
    "to_dense",
    "unpack",
]

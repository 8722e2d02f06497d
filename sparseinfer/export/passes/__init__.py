"""What is done to a graph, a file each, in the order of `PASSES`: each changes it in place."""

from collections.abc import Callable

from sparseinfer.export.graph import Graph
from sparseinfer.export.passes.activation import fuse_activations
from sparseinfer.export.passes.attention import place_attention
from sparseinfer.export.passes.batch_norm import fold_batch_norms
from sparseinfer.export.passes.bias import fold_biases
from sparseinfer.export.passes.dead_code import remove_dead_code
from sparseinfer.export.passes.depthwise import find_depthwise
from sparseinfer.export.passes.duplicates import remove_duplicates
from sparseinfer.export.passes.formulas import fuse_formulas
from sparseinfer.export.passes.keep_bytes import keep_bytes
from sparseinfer.export.passes.norm import fuse_norm_residuals
from sparseinfer.export.passes.padding import fold_padding, spell_padding
from sparseinfer.export.passes.projections import merge_projections
from sparseinfer.export.passes.residual import fuse_residuals
from sparseinfer.export.passes.scores import find_attention
from sparseinfer.export.passes.views import simplify_views, sink_views

__all__ = ["PASSES", "optimize"]

PASSES: tuple[Callable[[Graph], None], ...] = (
    remove_duplicates,
    fuse_formulas,
    find_attention,
    fold_biases,
    remove_dead_code,
    sink_views,
    place_attention,
    sink_views,
    simplify_views,
    remove_dead_code,
    merge_projections,
    fuse_norm_residuals,
    fold_padding,
    spell_padding,
    fold_batch_norms,
    find_depthwise,
    fuse_residuals,
    fuse_activations,
    keep_bytes,
    remove_dead_code,
)


def optimize(graph: Graph) -> None:
    """Run all passes.

    Raises:
        RuntimeError: a folded batch norm does not compute what it did.
    """
    for change in PASSES:
        change(graph)

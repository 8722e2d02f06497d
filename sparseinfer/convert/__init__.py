"""From a pruned model to one whose layers run sparse where that is faster, and the report."""

from sparseinfer.convert.conversion import convert_to_sparse

__all__ = ["convert_to_sparse"]

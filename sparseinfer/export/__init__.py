"""Whole networks as one plan: `sparseinfer.compile`, and the files that it saves.

`from_torch` makes a `Graph` of a model; `passes` change it, a file each; `file` writes it as bytes,
which the native library reads, checks, plans and runs; `engine` is what a user calls.
"""

import importlib
from types import ModuleType

from sparseinfer.when_imported import when_imported


def _register(exporters: ModuleType) -> None:
    """Let transformers export engines, once the caller has imported its exporters."""
    importlib.import_module("sparseinfer.export.hf_exporter")


when_imported("transformers.exporters.auto", _register)

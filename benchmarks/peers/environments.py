"""The virtual environments of the peers that do not run in ours, and making them."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.peers.catalogue import Peer
from benchmarks.peers.process import PeerError, own_python
from sparseinfer.files import write_text

CACHE = ROOT / ".cache" / "peers"

PACKAGES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("numpy", "onnx", "onnxruntime"),
    "openvino": ("numpy", "onnx", "openvino"),
    # Apart from OpenVINO's own: it brings a dozen packages, which may hold OpenVINO back.
    "nncf": ("numpy", "onnx", "openvino", "nncf"),
    "scipy": ("numpy", "scipy"),
    "mnn": ("numpy", "onnx", "MNN"),
    # The last release whose engine installs.
    "deepsparse": ("deepsparse==1.8.0", "numpy<2"),
}

READY = "packages.txt"
"""Written last: an environment whose making was interrupted is made again."""


def _python(folder: Path) -> Path:
    scripts = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return folder.joinpath(*scripts)


def is_ready(folder: Path, packages: Sequence[str]) -> bool:
    """Return whether the environment was made to the end, with these packages."""
    try:
        return (folder / READY).read_text(encoding="utf-8").split() == list(packages)
    except OSError:
        return False


def python_of(peer: Peer, cache: Path) -> Path:
    """Return the interpreter that runs a peer.

    Raises:
        PeerError: its environment has not been made.
    """
    if peer.environment is None:
        return own_python()
    folder = cache / peer.environment
    if not is_ready(folder, PACKAGES[peer.environment]):
        flag = " --deepsparse" if peer.environment == "deepsparse" else ""
        raise PeerError(f"not installed, try python -m benchmarks.peers --setup{flag}")
    return _python(folder)


def install(folder: Path, packages: Sequence[str]) -> None:
    """Make an environment and install packages into it by pip.

    Raises:
        PeerError: pip failed; the message is its last line.
    """
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(_python(folder)), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", *packages], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise PeerError(lines[-1])
    write_text(folder / READY, "\n".join(packages))


def set_up(names: Sequence[str], cache: Path, say: Callable[[str], None]) -> bool:
    """Make the environments that are not ready; return whether all are.

    One that fails does not keep the others from being made.
    """
    complete = True
    for name in names:
        packages = PACKAGES[name]
        if is_ready(cache / name, packages):
            say(f"{name}: ready")
            continue
        say(f"{name}: installing {', '.join(packages)}")
        try:
            install(cache / name, packages)
        except (PeerError, OSError, subprocess.SubprocessError) as error:
            say(f"{name}: failed: {error}")
            complete = False
    return complete

"""Imports between the folders of the package go down, and modules import in no circle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sparseinfer"

FLOORS = (
    ("_C",),
    ("native",),
    ("codec", "files", "plotting", "progress", "switches", "when_imported"),
    ("timing",),
    ("quantize",),
    ("formats",),
    ("kernels",),
    ("ops",),
    ("layers",),
    ("convert",),
    ("prune",),
    ("checkpoints",),
    ("export",),
    ("api",),
    ("demo",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Folders and modules, the lowest first: a module imports of its own floor and of lower ones."""

HEAVY = ("matplotlib", "rich", "transformers", "triton", "typer")
"""What `import sparseinfer` leaves for when it is used."""


def modules(package: Path) -> dict[str, Path]:
    """Dotted names, without the package's own, and files."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(source: str, known: dict[str, Path], top_only: bool) -> Iterator[str]:
    """The modules of the package that a source imports; `top_only`: as it is imported itself."""
    left: list[ast.AST] = [ast.parse(source)]
    while left:
        node = left.pop()
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            while first == "sparseinfer" and rest:
                if rest in known or rest == "_C":
                    yield rest
                    break
                rest = rest.rpartition(".")[0]
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not (top_only and (is_function or is_typing)):
            left += ast.iter_child_nodes(node)


def floor(name: str) -> int:
    folder = name.partition(".")[0]
    return next(level for level, names in enumerate(FLOORS) if folder in names)


def upward(package: Path) -> list[str]:
    known = modules(package)
    return [
        f"{name} imports {other}"
        for name, path in known.items()
        for other in imports(path.read_text("utf-8"), known, top_only=False)
        if floor(other) > floor(name)
    ]


def circle(package: Path) -> list[str]:
    """Modules that import each other in a circle as they are imported; empty where none do."""
    known = modules(package)
    below = {
        name: set(imports(path.read_text("utf-8"), known, top_only=True)) & known.keys() - {name}
        for name, path in known.items()
    }
    # A package's own file is imported before what is in it, so its imports of that are no circle.
    for name, others in below.items():
        below[name] = {other for other in others if not name.startswith(f"{other}.")}
    while free := [name for name, others in below.items() if not others]:
        for name in free:
            del below[name]
        for others in below.values():
            others.difference_update(free)
    return sorted(below)


def test_every_module_has_a_floor():
    for name in modules(PACKAGE):
        floor(name)


def test_imports_go_down():
    assert upward(PACKAGE) == []


def test_no_circle():
    assert circle(PACKAGE) == []


def test_what_goes_up_or_in_circles_is_found(tmp_path):
    (tmp_path / "timing").mkdir()
    (tmp_path / "ops").mkdir()
    (tmp_path / "timing" / "clock.py").write_text("def f():\n    from sparseinfer.ops import a\n")
    (tmp_path / "ops" / "a.py").write_text("import sparseinfer.ops.b\n")
    (tmp_path / "ops" / "b.py").write_text("from sparseinfer.ops import a\n")
    assert upward(tmp_path) == ["timing.clock imports ops.a"]
    assert circle(tmp_path) == ["ops.a", "ops.b"]


@pytest.mark.parametrize("name", ["_C", "native"])
def test_one_module_imports_the_native_library(name):
    known = modules(PACKAGE)
    importers = [
        own
        for own, path in known.items()
        if name in imports(path.read_text("utf-8"), known, top_only=False)
    ]
    assert (importers == ["native"]) == (name == "_C") and importers


def test_importing_the_package_loads_nothing_heavy():
    script = f"import sys, sparseinfer; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""The folders of csrc stand on one another: an include goes down, never up, never in a circle."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"

FLOORS = ("include", "core", "formats", "kernels", "runtime", "api", "python")
"""The folders from the ground up. A file includes files of its own floor and of those below."""

APART = ("cuda", "testing", "tools")
"""Folders that no floor may include. CUDA and the program stand alone; tests see everything."""

INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<(sparseinfer\.h)>)', re.MULTILINE)


def includes(folder: Path) -> dict[str, list[str]]:
    """The files of ours that each file includes, as paths below `folder`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".cc", ".h", ".inc", ".cu", ".cuh"):
            continue
        names = INCLUDE.findall(path.read_text(encoding="utf-8"))
        found[path.relative_to(folder).as_posix()] = [
            quoted or f"include/{public}" for quoted, public in names
        ]
    return found


def is_test(file: str) -> bool:
    return "_test." in file or file.startswith("testing/")


def upward(graph: dict[str, list[str]]) -> list[str]:
    """The includes of the library's files that go to a higher floor, or to none."""
    floor = {name: height for height, name in enumerate(FLOORS)}
    wrong = []
    for file, targets in graph.items():
        here = file.partition("/")[0]
        if is_test(file) or here in APART:
            continue
        for target in targets:
            there = target.partition("/")[0]
            if is_test(target) or floor.get(there, len(FLOORS)) > floor[here]:
                wrong.append(f"{file} includes {target}")
    return wrong


def circle(graph: dict[str, list[str]]) -> list[str]:
    """The files of one circle of includes, the first of them twice; empty where there is none."""
    done: set[str] = set()

    def walk(file: str, path: list[str]) -> list[str]:
        if file in path:
            return [*path[path.index(file) :], file]
        if file not in done:
            for target in graph.get(file, []):
                found = walk(target, [*path, file])
                if found:
                    return found
            done.add(file)
        return []

    return next(filter(None, (walk(file, []) for file in graph)), [])


def test_every_folder_has_a_floor():
    folders = {path.name for path in CSRC.iterdir() if path.is_dir()}
    assert folders == {*FLOORS, *APART}


def test_includes_go_down():
    assert upward(includes(CSRC)) == []


def test_includes_go_in_no_circle():
    assert circle(includes(CSRC)) == []


def test_only_the_bindings_include_python():
    using = {
        path.relative_to(CSRC).parts[0]
        for path in CSRC.rglob("*.*")
        if path.suffix in (".cc", ".h") and re.search(r"<(Python|pybind11/)", path.read_text())
    }
    assert using == {"python"}


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("core/cpu.cc", '#include "kernels/registry.h"', True),
        ("formats/blob.cc", '#  include "api/api.h"', True),
        ("kernels/source.cc", '#include "testing/problem.h"', True),
        ("kernels/source.cc", '#include "core/parallel_test.h"', True),
        ("core/cpu.cc", '#include "elsewhere/x.h"', True),
        ("kernels/source.cc", '#include "formats/weights.h"', False),
        ("core/cpu_test.cc", '#include "kernels/registry.h"', False),
        ("core/cpu.cc", "#include <sparseinfer.h>", False),
    ],
)
def test_an_upward_include_is_found(tmp_path, file, line, wrong):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line + "\n")
    assert bool(upward(includes(tmp_path))) == wrong


def test_a_circle_is_found(tmp_path):
    (tmp_path / "core").mkdir()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / "core" / f"{name}.h").write_text(f'#include "core/{other}.h"\n')
    assert circle(includes(tmp_path)) == ["core/a.h", "core/b.h", "core/c.h", "core/a.h"]

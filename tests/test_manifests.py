"""Projects of Zephyr, ESP-IDF and PlatformIO: what the manifests name, and what they build."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from exported_c import amalgamated, call, compiled
from torch import nn

import sparseinfer

ROOT = Path(__file__).resolve().parent.parent
IDF = ROOT / "esp-idf" / "sparseinfer"


def tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"no {name} on PATH; it would build a project")
    return path


def short(path: Path) -> str:
    """The text of a manifest, which is to be read at a glance."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 16
    return text


def test_zephyr_knows_the_module():
    module = yaml.safe_load(short(ROOT / "zephyr" / "module.yml"))
    assert module["name"] == "sparseinfer"
    assert (ROOT / module["build"]["cmake"] / "CMakeLists.txt").is_file()
    assert (ROOT / module["build"]["kconfig"]).is_file()


def test_esp_idf_knows_the_component():
    component = yaml.safe_load(short(IDF / "idf_component.yml"))
    assert component["license"] == "Apache-2.0" and component["description"]
    assert set(component["dependencies"]) == {"idf"}
    # The folder names the component.
    assert IDF.name == "sparseinfer" and (IDF / "CMakeLists.txt").is_file()


@pytest.mark.parametrize("folder", [ROOT / "zephyr", IDF], ids=lambda folder: folder.parent.name)
def test_every_option_is_declared(folder: Path):
    declared = set(re.findall(r"^config (\w+)", (folder / "Kconfig").read_text(), re.MULTILINE))
    used = set(re.findall(r"CONFIG_(\w+)", (folder / "CMakeLists.txt").read_text()))
    assert used and used == declared


def selected(source_filter: str, folder: Path) -> set[str]:
    """The sources that a filter of PlatformIO takes: `+<...>` adds, `-<...>` takes away."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.c*")]
    found: set[str] = set()
    for sign, pattern in re.findall(r"([+-])<([^>]*)>", source_filter):
        own = {
            file
            for file in files
            if file.startswith(pattern) or fnmatch.fnmatch(file, pattern.replace("**/", "*"))
        }
        found = found | own if sign == "+" else found - own
    return {file for file in found if file.endswith((".c", ".cc"))}


def test_platformio_knows_the_library():
    library = json.loads(short(ROOT / "library.json"))
    assert library["name"] == "sparseinfer"
    assert library["version"] == sparseinfer.__version__
    build = library["build"]
    folder = ROOT / build["srcDir"]
    assert (ROOT / build["includeDir"] / "sparseinfer.h").is_file()
    # What CMakeLists.txt takes into the library, but for the instruction sets.
    apart = ("python/", "testing/", "tools/", "kernels/isa/", "cuda/")
    expected = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.cc")
        if not path.name.endswith("_test.cc")
    }
    expected = {file for file in expected if not file.startswith(apart)}
    assert selected(build["srcFilter"], folder) == expected
    flags = {flag for text in build["flags"] for flag in shlex.split(text)}
    isas = re.findall(r"^SI_ISA\((\w+),", (folder / "core" / "isas.inc").read_text(), re.MULTILINE)
    left_out = {flag for flag in flags if flag.startswith("-DSI_WITHOUT_")}
    assert left_out == {f"-DSI_WITHOUT_{isa}=1" for isa in isas if isa != "scalar"}
    assert f'-DSPARSEINFER_VERSION="{sparseinfer.__version__}"' in flags


STAND_IN = {
    # What these systems' own CMake files give, as far as ours use it.
    "zephyr": """
function(zephyr_library_named name)
  add_library(${name} STATIC)
  set(library ${name} PARENT_SCOPE)
endfunction()
macro(zephyr_library_sources)
  target_sources(${library} PRIVATE ${ARGN})
endmacro()
macro(zephyr_include_directories)
  include_directories(${ARGN})
  target_include_directories(${library} PUBLIC ${ARGN})
endmacro()
set(APPLICATION_SOURCE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
set(CONFIG_SPARSEINFER y)
""",
    "esp-idf/sparseinfer": """
function(idf_build_get_property out name)
  set(${out} "${CMAKE_SOURCE_DIR}" PARENT_SCOPE)
endfunction()
function(idf_component_register)
  cmake_parse_arguments(own "" "" "SRCS;INCLUDE_DIRS" ${ARGN})
  add_library(sparseinfer STATIC ${own_SRCS})
  target_include_directories(sparseinfer PUBLIC ${own_INCLUDE_DIRS})
endfunction()
""",
}

PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(app C ASM)
set(CMAKE_C_STANDARD 99)
{stand_in}
set(CONFIG_SPARSEINFER_MODEL "{model}")
add_subdirectory("{folder}" sparseinfer)
add_executable(app main.c)
target_link_libraries(app PRIVATE sparseinfer m)
"""


@pytest.mark.parametrize("which", STAND_IN)
def test_a_project_builds_an_exported_model(tmp_path: Path, which: str):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(1, 20)
    engine = compiled(model.eval(), x, "int8")
    amalgamated(engine, tmp_path / "net")
    (tmp_path / "net" / "main.c").rename(tmp_path / "main.c")
    text = PROJECT.format(stand_in=STAND_IN[which], folder=ROOT / which, model="net")
    (tmp_path / "CMakeLists.txt").write_text(text)
    ninja = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    call(tool("cmake"), "-S", ".", "-B", "build", *ninja, cwd=tmp_path)
    call(tool("cmake"), "--build", "build", cwd=tmp_path)
    out = call(tmp_path / "build" / "app", cwd=tmp_path, stdin=x.numpy().tobytes())
    assert np.array_equal(np.frombuffer(out, np.float32), engine(x).numpy().ravel())
    (tmp_path / "CMakeLists.txt").write_text(text.replace('MODEL "net"', 'MODEL "nowhere"'))
    with pytest.raises(AssertionError, match="expected CONFIG_SPARSEINFER_MODEL to be the folder"):
        call(tool("cmake"), "-S", ".", "-B", "build", cwd=tmp_path)


def test_esp_idf_reads_the_component_before_there_is_a_project(tmp_path: Path):
    script = "set(CMAKE_BUILD_EARLY_EXPANSION 1)\nfunction(idf_component_register)\nendfunction()\n"
    (tmp_path / "early.cmake").write_text(f'{script}include("{IDF}/CMakeLists.txt")\n')
    call(tool("cmake"), "-P", "early.cmake", cwd=tmp_path)

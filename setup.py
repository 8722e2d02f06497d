"""Builds the extension module sparseinfer._C with CMake; pyproject.toml says the rest.

Environment variables:
    CMAKE_ARGS                  further arguments of the configure step
    CMAKE_BUILD_PARALLEL_LEVEL  compile jobs at once (default 2: a kernel file needs much memory)
    SPARSEINFER_CUDA            AUTO (default), ON or OFF: the optional library of CUDA C++ kernels
    SPARSEINFER_BUILD_DIR       the CMake build directory (default build/cmake-<python>-<platform>)
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_tool(name: str) -> str | None:
    """Return the path of a build tool: the one on PATH, else the one of this interpreter."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def replace(built: Path, target: Path) -> None:
    """Copy a library over another; a process that has the old one mapped does not see it change."""
    staged = target.with_suffix(".new" + target.suffix)
    shutil.copy2(built, staged)
    os.replace(staged, target)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cmake = find_tool("cmake")
        if cmake is None:
            raise FileNotFoundError("expected cmake on PATH, got none, try pip install cmake")
        ninja = find_tool("ninja")
        # One directory for every kind of build, not setuptools' build_temp: an editable install
        # gets a new temporary one each time and would compile all kernels again. The generator is
        # part of the name because CMake refuses to change it in a directory that exists.
        default = f"cmake-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        if ninja is None:
            default += "-make"
        build_dir = Path(os.environ.get("SPARSEINFER_BUILD_DIR") or ROOT / "build" / default)
        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(build_dir)),
            "-DCMAKE_BUILD_TYPE=Release",
            "-DSPARSEINFER_PYTHON=ON",
            "-DSPARSEINFER_TESTS=OFF",
            f"-DSPARSEINFER_CUDA={os.environ.get('SPARSEINFER_CUDA') or 'AUTO'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        if ninja is not None:
            # Named at every build: pip's isolated environment leaves with the ninja in it.
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run(configure, check=True)
        build = [cmake, "--build", str(build_dir), "--target", "_C"]
        subprocess.run(build, check=True, env={"CMAKE_BUILD_PARALLEL_LEVEL": "2", **os.environ})

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(build_dir / "python" / target.name, target)
        built = build_dir / "python" / "libsparseinfer_cuda.so"
        installed = target.with_name(built.name)
        if built.exists():
            replace(built, installed)
        else:
            installed.unlink(missing_ok=True)  # of an earlier build with SPARSEINFER_CUDA=ON


setup(ext_modules=[Extension("sparseinfer._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

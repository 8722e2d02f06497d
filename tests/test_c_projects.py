"""Projects of C build on the library: installed, and as part of their own build.

Every program here is linked by the C compiler, and needs no C++ runtime.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_c import bound_of, compiled
from golden_networks import GOLDEN
from torch import nn
from torch.nn.utils import prune

import sparseinfer
from sparseinfer.export.c.folder import files_of, write_folder

pytestmark = pytest.mark.slow  # They compile the library.

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = ROOT / "tests" / "c_projects"
MODEL = ROOT / "csrc" / "runtime" / "golden" / "small_network_v1.sinf"
PERCEPTRON_MODEL = MODEL.with_name("perceptron_v1.sinf")
VERSION = sparseinfer.__version__
CPP = re.compile(r" U (_Z|__cxa_(throw|guard|pure|begin)|__gxx_|_Unwind_)|libstdc\+\+")


def call(*words: str | Path, **environment: str) -> str:
    """What a command prints; its whole output in the failure where it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"no {name} on PATH")
    return path


def configure(source: Path, build: Path, *options: str) -> None:
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    # The scalar kernels alone compile in a third of the time.
    scalar = ["-DSPARSEINFER_INSTRUCTION_SETS=NONE", "-DCMAKE_BUILD_TYPE=Release"]
    ninja = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    call(tool("cmake"), "-S", source, "-B", build, *ninja, *launcher, *scalar, *options)


def build(source: Path, folder: Path, *options: str, target: str = "all") -> None:
    configure(source, folder, *options)
    call(tool("cmake"), "--build", folder, "--target", target, CMAKE_BUILD_PARALLEL_LEVEL="2")


def check_program(program: Path, shared: bool = False, **environment: str) -> None:
    """That it runs the model, and needs no C++ runtime; `shared`, whether it loads the library."""
    assert re.fullmatch(rf"{re.escape(VERSION)} 0\.0833\n", call(program, MODEL, **environment))
    assert not CPP.search(call(tool("nm"), program))
    needed = re.findall(r"NEEDED.*\[(.+)\]", call(tool("readelf"), "-d", program))
    assert ("libsparseinfer.so.1" in needed) == shared
    assert not any("stdc++" in library or "libgcc" in library for library in needed)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix that the library was installed to, and moved from there afterwards."""
    work = tmp_path_factory.mktemp("install")
    build(ROOT, work / "build", "-DSPARSEINFER_TESTS=OFF", "-DCMAKE_INSTALL_LIBDIR=lib")
    call(tool("cmake"), "--install", work / "build", "--prefix", work / "first")
    shutil.rmtree(work / "build")
    (work / "first").rename(work / "prefix")
    return work / "prefix"


def test_what_is_installed(installed: Path):
    files = {
        path.relative_to(installed).as_posix() for path in installed.rglob("*") if not path.is_dir()
    }
    assert files == {
        "bin/sparseinfer-run",
        "include/sparseinfer.h",
        "lib/libsparseinfer.a",
        "lib/libsparseinfer.so",
        "lib/libsparseinfer.so.1",
        "lib/pkgconfig/sparseinfer.pc",
        "lib/cmake/sparseinfer/sparseinferConfig.cmake",
        "lib/cmake/sparseinfer/sparseinferConfigVersion.cmake",
    }
    assert (
        call(installed / "bin" / "sparseinfer-run", "--version") == f"sparseinfer-run {VERSION}\n"
    )


def test_the_shared_library_needs_no_cpp_and_offers_the_header_alone(installed: Path):
    library = installed / "lib" / "libsparseinfer.so"
    needed = re.findall(r"NEEDED.*\[(.+)\]", call(tool("readelf"), "-d", library))
    assert needed and not any("stdc++" in each or "libgcc" in each for each in needed)
    offered = set(re.findall(r" T (\w+)", call(tool("nm"), "-D", "--defined-only", library)))
    header = (installed / "include" / "sparseinfer.h").read_text()
    assert offered == set(re.findall(r"^SI_API [^;(]*?\b(si_\w+)\(", header, re.MULTILINE))


@pytest.mark.parametrize(
    "link", ["sparseinfer::static", "sparseinfer::shared", "sparseinfer::sparseinfer"]
)
@pytest.mark.parametrize("shared", ["ON", "OFF"])
def test_find_package(installed: Path, tmp_path: Path, link: str, shared: str):
    options = ["-DWAY=package", f"-DLINK={link}", f"-DBUILD_SHARED_LIBS={shared}"]
    build(PROJECTS, tmp_path, *options, f"-DCMAKE_PREFIX_PATH={installed}", f"-DWANTED={VERSION}")
    loads = link == "sparseinfer::shared" or (link == "sparseinfer::sparseinfer" and shared == "ON")
    check_program(tmp_path / "main", loads)


@pytest.mark.parametrize("wanted", ["99.0", "0.0.1"])
def test_another_version_is_refused(installed: Path, tmp_path: Path, wanted: str):
    with pytest.raises(AssertionError, match="compatible with requested version"):
        configure(
            PROJECTS,
            tmp_path,
            *("-DWAY=package", "-DLINK=sparseinfer::static", f"-DWANTED={wanted}"),
            f"-DCMAKE_PREFIX_PATH={installed}",
        )


@pytest.mark.parametrize("static", [True, False])
def test_pkg_config(installed: Path, tmp_path: Path, static: bool):
    path = {"PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
    flags = call(
        tool("pkg-config"), "--cflags", "--libs", *(["--static"] * static), "sparseinfer", **path
    )
    words = flags.split()
    if static:
        words[words.index("-lsparseinfer")] = "-l:libsparseinfer.a"
    main = tmp_path / "main"
    call(tool("cc"), "-std=c99", "-Wall", "-Werror", PROJECTS / "main.c", *words, "-o", main)
    check_program(main, not static, LD_LIBRARY_PATH=str(installed / "lib"))
    assert call(tool("pkg-config"), "--modversion", "sparseinfer", **path).strip() == VERSION


OBJECT = """
#include <sparseinfer.h>
#include <stdint.h>
#include <stdio.h>

#include "net.h"

static char room[NET_CONTEXT_BYTES + 63];

int main(void) {
  void* const memory = room + (64 - (uintptr_t)room % 64) % 64;
  si_model* model = NULL;
  si_context* context = NULL;
  si_context_options options = {.struct_size = sizeof options, .threads = 1, .shared_scratch = 1};
  si_model_info info = {.struct_size = sizeof info};
  double worst = 2;
  if (si_model_open(net_sinf, NET_SINF_BYTES, &model) != SI_OK) return 1;
  if (si_model_describe(model, &info) != SI_OK) return 2;
  if (info.context_bytes != NET_CONTEXT_BYTES) return 2;
  if (si_context_create_with(model, memory, info.context_bytes, &options, &context) != SI_OK)
    return 3;
  if (si_context_selftest(context, &worst) != SI_OK) return 4;
  printf("%g\\n", worst);
  si_model_close(model);
  return 0;
}
"""


class Classifier(nn.Module):
    """Scores of three classes by the means of an image's channels, pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 3)
        for layer in (self.conv, self.linear):
            prune.l1_unstructured(layer, "weight", amount=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """A model file, an image as PPM, and the model's output for it."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(1)
    model = Classifier().eval()
    image = torch.randint(0, 256, (12, 10, 3), dtype=torch.uint8)
    x = image.permute(2, 0, 1)[None].float() / 255
    sparseinfer.compile(model, x, golden=True).save(folder / "model.sinf")
    sparseinfer.compile(model, x, golden=True, weights="int8", calibration=[x, x.flip(3)]).save(
        folder / "int8.sinf"
    )
    (folder / "image.ppm").write_bytes(b"P6 10 12 255\n" + image.numpy().tobytes())
    np.save(folder / "x.npy", x.numpy())
    with torch.no_grad():
        return folder / "model.sinf", folder / "image.ppm", model(x)[0]


def test_the_program_reads_and_writes_arrays_of_numpy(installed, classifier, tmp_path: Path):
    model, image, expected = classifier
    for given in (image, image.with_name("x.npy")):
        run = installed / "bin" / "sparseinfer-run"
        call(run, model, "--input", given, "--output", tmp_path / "y.npy")
        y = np.load(tmp_path / "y.npy")
        assert y.shape == (1, 3) and y.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(y[0]), expected)


@dataclass(frozen=True)
class Elsewhere:
    """What runs models on another processor, and what runs them here."""

    there: list[str | Path]
    here: list[str | Path]

    def outputs(self, folder: Path, model: Path, x: Path, *options: str) -> dict[str, np.ndarray]:
        """Of a model: there twice, there with threads, and here with and without."""
        runs = {
            "there": (self.there, []), "again": (self.there, []),
            "threads": (self.there, ["--threads", "3"]),
            "here": (self.here, []), "here, threads": (self.here, ["--threads", "2"]),
        }  # fmt: skip
        found = {}
        for name, (command, more) in runs.items():
            call(*command, model, "--input", x, "--output", folder / "y.npy", "--selftest", *more)
            found[name] = np.load(folder / "y.npy")
        return found


@pytest.fixture(
    scope="module",
    params=[
        ("aarch64-linux-gnu", "qemu-aarch64-static", "neon;neondot"),
        ("arm-linux-gnueabihf", "qemu-arm-static", "NONE"),
        ("riscv64-linux-gnu", "qemu-riscv64-static", "NONE"),
    ],
    ids=lambda processor: processor[0],
)
def elsewhere(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Elsewhere:
    """`make cross-...` names its own build, and this machine's."""
    prefix, emulator, sets = request.param
    ready = os.environ.get("SPARSEINFER_CROSS_BUILD")
    if ready is not None:
        folder, here = ROOT / ready, Path(os.environ["SPARSEINFER_BUILD_DIR"]) / "sparseinfer-run"
    else:
        folder = tmp_path_factory.mktemp(prefix)
        here = request.getfixturevalue("installed") / "bin" / "sparseinfer-run"
        tool(f"{prefix}-g++")
        options = [
            f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / prefix}.cmake",
            f"-DSPARSEINFER_INSTRUCTION_SETS={sets}",
            "-DCMAKE_BUILD_TYPE=MinSizeRel",
        ]
        build(ROOT, folder, *options, target="sparseinfer-run")
    return Elsewhere([tool(emulator), "-L", f"/usr/{prefix}", folder / "sparseinfer-run"], [here])


def check_alike(found: dict[str, np.ndarray], integers: bool, bound: float) -> None:
    """Equal from run to run and whatever the threads; elsewhere too, or within what is allowed."""
    assert (found["there"] == found["again"]).all()
    assert (found["there"] == found["threads"]).all()
    assert (found["here"] == found["here, threads"]).all()
    if integers:
        assert (found["there"] == found["here"]).all()
    # Each is within the bound of the file's.
    assert np.abs(found["there"] - found["here"]).max() <= 2 * bound
    assert np.ptp(found["here"]) > 0


@pytest.mark.cross
def test_models_test_themselves_on_other_processors(elsewhere, classifier, tmp_path: Path):
    """What a model gave here is within its bound there; integers are the same bit for bit."""
    model, image, _ = classifier
    for name in ("model.sinf", "int8.sinf"):
        engine = sparseinfer.load_engine(model.with_name(name))
        found = elsewhere.outputs(tmp_path, model.with_name(name), image)
        check_alike(found, name == "int8.sinf", bound_of(engine))


@pytest.mark.cross
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_networks_on_other_processors(elsewhere, tmp_path: Path, name: str, weights: str):
    """Networks of layers of int8 alone give the same bits; floats of others are rounded."""
    model, x = GOLDEN[name]()
    engine = compiled(model, x, weights)
    engine.save(tmp_path / "model.sinf")
    np.save(tmp_path / "x.npy", x.numpy())
    found = elsewhere.outputs(tmp_path, tmp_path / "model.sinf", tmp_path / "x.npy")
    integers = weights == "int8" and name in ("simple_cnn", "mobilenet_v2")
    if weights == "int8":
        assert "int8" in engine.facts().types
    check_alike(found, integers, bound_of(engine))


def test_examples(installed, classifier, tmp_path: Path):
    model, image, expected = classifier
    path = {"PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
    flags = call(tool("pkg-config"), "--cflags", "--libs", "sparseinfer", **path).split()
    example = ROOT / "examples" / "edge"
    assert len((example / "classify.c").read_text().splitlines()) < 60
    call(
        tool("cc"),
        "-Wall",
        "-Wextra",
        "-Werror",
        example / "classify.c",
        *flags,
        "-o",
        tmp_path / "classify",
    )
    library = installed / "lib" / "libsparseinfer.so"
    where = {"LD_LIBRARY_PATH": str(library.parent)}
    by_c = call(tmp_path / "classify", model, image, **where)
    by_ctypes = call(sys.executable, example / "classify.py", library, model, image)
    assert by_c == by_ctypes
    found = re.fullmatch(r"class (\d+), score (\S+)\n", by_c)
    assert found and int(found[1]) == expected.argmax()
    assert float(found[2]) == pytest.approx(float(expected.max()), rel=1e-4)


def test_the_example_in_rust(installed, classifier, tmp_path: Path):
    model, image, expected = classifier
    library = installed / "lib"
    call(
        tool("rustc"),
        *("-O", "-D", "warnings", ROOT / "examples" / "edge" / "classify.rs"),
        *("-L", library, "-o", tmp_path / "classify"),
    )
    where = {"LD_LIBRARY_PATH": str(library)}
    printed = call(tmp_path / "classify", model, image, **where)
    found = re.fullmatch(r"class (\d+), score (\S+)\n", printed)
    assert found and int(found[1]) == expected.argmax()
    assert float(found[2]) == pytest.approx(float(expected.max()), rel=1e-4)
    with pytest.raises(AssertionError, match="expected a binary PPM of bytes, of the model's size"):
        call(tmp_path / "classify", model, model, **where)


def test_an_exported_object_is_a_model(installed, classifier, tmp_path: Path):
    """What `sparseinfer export --format c` wrote: used in place, in memory of its own size."""
    model, _, _ = classifier
    write_folder(tmp_path / "net", files_of(sparseinfer.load_engine(model), "c", "net"))
    (tmp_path / "main.c").write_text(OBJECT)
    path = {"PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
    flags = call(tool("pkg-config"), "--cflags", "--libs", "sparseinfer", **path).split()
    sources = [tmp_path / "main.c", tmp_path / "net" / "net.S", f"-I{tmp_path / 'net'}"]
    warnings = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    call(tool("cc"), *warnings, *sources, *flags, "-o", tmp_path / "main")
    where = {"LD_LIBRARY_PATH": str(installed / "lib")}
    worst = float(call(tmp_path / "main", **where))
    assert 0 <= worst < 1


@pytest.mark.parametrize(
    ("way", "link", "options"),
    [
        ("subdirectory", "sparseinfer::static", []),
        ("subdirectory", "sparseinfer::shared", ["-DSPARSEINFER_SHARED=ON"]),
        ("fetch", "sparseinfer::sparseinfer", []),
        ("fetch", "sparseinfer::static", ["-DSPARSEINFER_THREADS=OFF"]),
    ],
)
def test_as_part_of_another_project(tmp_path: Path, way: str, link: str, options: list[str]):
    build(
        PROJECTS,
        tmp_path,
        f"-DWAY={way}",
        f"-DLINK={link}",
        f"-DSPARSEINFER_SOURCE={ROOT}",
        *options,
    )
    check_program(tmp_path / "main", link == "sparseinfer::shared")
    # No tests, no program and no installation of ours in another project.
    assert not list(tmp_path.rglob("sparseinfer-run")) and not list(tmp_path.rglob("*_test"))


def test_without_files_and_threads(tmp_path: Path):
    build(
        ROOT,
        tmp_path,
        *("-DSPARSEINFER_FILES=OFF", "-DSPARSEINFER_THREADS=OFF", "-DSPARSEINFER_SHARED=OFF"),
        "-DSPARSEINFER_TESTS=ON",
        target="api.model_api_test",
    )
    library = tmp_path / "lib" / "libsparseinfer.a"
    undefined = set(re.findall(r" U (\w+)", call(tool("nm"), "--undefined-only", library)))
    assert not undefined & {"open", "open64", "read", "mmap", "mmap64", "fopen", "fopen64", "dlsym"}
    assert not any(name.startswith("pthread_") for name in undefined)
    call(tmp_path / "api.model_api_test")


PERCEPTRON = ("-DSPARSEINFER_OPERATORS=linear;softmax", "-DSPARSEINFER_FORMATS=panel")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-DSPARSEINFER_TYPES=float32"], True),
        (["-DSPARSEINFER_TYPES=float32", "-DSPARSEINFER_OPTIMIZE_SIZE=ON"], True),
        (["-DSPARSEINFER_TYPES=float32;int8", "-DSPARSEINFER_MESSAGES=OFF"], False),
    ],
)
def test_a_library_with_what_a_perceptron_needs(
    classifier, tmp_path: Path, options: list[str], told: bool
):
    """It runs golden models of those operators, and says of each other model what it lacks."""
    common = ["-DSPARSEINFER_SHARED=OFF", "-DSPARSEINFER_THREADS=OFF"]
    build(ROOT, tmp_path, *common, *PERCEPTRON, *options)
    listed = call(tool("ctest"), "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error")
    assert "runtime.golden_test" in listed and "runtime" in listed
    run = [tmp_path / "sparseinfer-run", PERCEPTRON_MODEL]
    assert "selftest  passed" in call(*run, "--selftest")
    model, image, _ = classifier
    refused = subprocess.run(
        [*map(str, (run[0], model, "--input", image, "--top", "1"))], capture_output=True, text=True
    )
    assert refused.returncode != 0
    for part in ("operator conv", "SPARSEINFER_OPERATORS") if told else ("SPARSEINFER_MESSAGES",):
        assert part in refused.stderr
    # What packs and what computes other operators is in no object of the library.
    symbols = call(tool("nm"), "-C", "--defined-only", tmp_path / "sparseinfer-run")
    for word in ("_pack(", "depthwise", "attend", "layer_norm", "csr_", "nm_validate", "bsr_"):
        assert not re.search(rf"si::\S*{re.escape(word)}", symbols), word


@pytest.mark.parametrize(
    ("option", "wrong", "known"),
    [
        ("SPARSEINFER_OPERATORS", "softmix", "linear;conv;depthwise_conv"),
        ("SPARSEINFER_FORMATS", "coo", "panel;csr;nm;bsr"),
        ("SPARSEINFER_TYPES", "int4", "float32;float16;bfloat16;int8"),
    ],
)
def test_a_name_that_is_in_no_table(tmp_path: Path, option: str, wrong: str, known: str):
    with pytest.raises(AssertionError) as refused:
        configure(ROOT, tmp_path, f"-D{option}={known};{wrong}")
    told = " ".join(str(refused.value).split())
    assert f"expected {option} to be ALL or some of" in told and f"'{known}" in told
    assert f"got '{wrong}'; try ALL" in told


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        ("-DSPARSEINFER_TYPES=float32", "SPARSEINFER_TYPES of ALL, or a list that names int8"),
        ("-DSPARSEINFER_FORMATS=csr", "SPARSEINFER_FORMATS of ALL, or a list that names panel"),
    ],
)
def test_a_model_of_a_type_or_format_that_is_left_out(
    classifier, tmp_path: Path, left_out: str, told: str
):
    build(ROOT, tmp_path, "-DSPARSEINFER_TESTS=OFF", left_out, target="sparseinfer-run")
    model = classifier[0].with_name("int8.sinf")
    refused = subprocess.run(
        [tmp_path / "sparseinfer-run", model, "--selftest"], capture_output=True, text=True
    )
    assert refused.returncode != 0 and told in refused.stderr


def test_what_a_model_names_is_what_its_library_needs(classifier, tmp_path: Path):
    """`engine.operators` and the facts beside it build a library that runs the model, small."""
    for name in ("model.sinf", "int8.sinf"):
        model = classifier[0].with_name(name)
        facts = sparseinfer.load_engine(model).facts()
        build(
            ROOT, tmp_path / name,
            f"-DSPARSEINFER_OPERATORS={';'.join(facts.operators)}",
            f"-DSPARSEINFER_FORMATS={';'.join(facts.formats)}",
            f"-DSPARSEINFER_TYPES={';'.join(facts.types)}",
            "-DSPARSEINFER_TESTS=OFF", "-DSPARSEINFER_OPTIMIZE_SIZE=ON",
            target="sparseinfer-run",
        )  # fmt: skip
        call(tmp_path / name / "sparseinfer-run", model, "--selftest")


class IsaInfo(ctypes.Structure):
    """`si_isa_info` of the header."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("compiled", ctypes.c_int),
        ("supported", ctypes.c_int),
        ("reason", ctypes.c_char_p),
        ("features", ctypes.c_uint64),
    ]


def test_instruction_sets_that_were_left_out_say_so(installed: Path):
    library = ctypes.CDLL(str(installed / "lib" / "libsparseinfer.so"))
    library.si_isa_count.restype = ctypes.c_size_t
    reasons = {}
    for index in range(library.si_isa_count()):
        info = IsaInfo(struct_size=ctypes.sizeof(IsaInfo))
        assert library.si_isa(ctypes.c_size_t(index), ctypes.byref(info)) == 0
        assert info.compiled == (info.name == b"scalar")
        reasons[info.name] = info.reason
    mine = b"neon" if platform.machine() == "aarch64" else b"avx2"
    assert reasons.pop(b"scalar") == b""
    assert reasons[mine] == b"not built: this library was configured without " + mine
    assert all(reason.startswith(b"not built: ") for reason in reasons.values())


def test_an_unknown_instruction_set(tmp_path: Path):
    """One that is not of this processor, or of none, is refused by its name."""
    with pytest.raises(AssertionError, match="got 'altivec'"):
        configure(ROOT, tmp_path, "-DSPARSEINFER_INSTRUCTION_SETS=altivec")

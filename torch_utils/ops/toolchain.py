"""Which compilers there are for the kernels and how they are called; found out without running any."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

HOST_COMPILERS = ("c++", "g++", "clang++")

# -ffast-math is not among them: under it NaN and infinity need not be what they are.
HOST_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")

CUDA_FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden")

PTX_ARCHITECTURES = (100, 90, 80, 75)
"""Compute capabilities for whose successors an nvcc that is older than the GPU can leave the last step to the driver."""


class BuildError(RuntimeError):
    """The kernels cannot be had; the message says why and what helps."""


def compilers() -> dict[str, tuple[str, ...] | None]:
    """The compiler for "cpu" and "cuda" with the arguments that ``$CXX`` gives it; None where none is found."""
    found: dict[str, tuple[str, ...] | None] = {"cpu": None, "cuda": None}
    with contextlib.suppress(BuildError):
        found["cpu"] = host_compiler()
    with contextlib.suppress(BuildError):
        found["cuda"] = (cuda_compiler(),)
    return found


def identity(word: str) -> str:
    """What tells a compiler from another of the same name; a word that names no program is an argument, and itself."""
    path = shutil.which(word)
    if path is None:
        return word
    path = os.path.realpath(path)
    facts = os.stat(path)
    return f"{path} {facts.st_size} {facts.st_mtime_ns}"


# ----- C++ ----------------------------------------------------------------------------------------------------------


def host_compiler() -> tuple[str, ...]:
    """Absolute path of the C++ compiler, and its arguments; BuildError if there is none."""
    chosen = os.environ.get("CXX", "")
    try:
        words = shlex.split(chosen)
    except ValueError as error:
        raise BuildError(f"CXX is {chosen!r}, which cannot be split into words: {error}.") from error
    for candidate in [words] if words else [[name] for name in HOST_COMPILERS]:
        if path := shutil.which(candidate[0]):
            return (os.path.abspath(path), *candidate[1:])
    if words:
        raise BuildError(f"No C++ compiler was found: CXX is {chosen!r}, but there is no such program.")
    raise BuildError(
        f"No C++ compiler was found: there is no {', '.join(HOST_COMPILERS)} on PATH. "
        "Install one (Debian, Ubuntu: apt install g++), or set CXX to the one to use."
    )


def host_variants() -> tuple[tuple[str, ...], ...]:
    """Flags for the C++ compiler, best first; which are taken is only found out when there is something to build."""
    natives = (("-march=native",), ("-mcpu=native",), ())  # some compilers for ARM have only the second, or none
    endings: tuple[tuple[str, ...], ...]
    if sys.platform == "darwin":
        endings = (("-fopenmp",), ())  # Apple's compiler has no OpenMP: one thread
    else:
        # The compiler's own C++ library, linked in and hidden, if it can be: a conda environment may have an older one.
        endings = (("-fopenmp", "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"), ("-fopenmp",))
    return tuple((*HOST_FLAGS, *native, *ending) for native, ending in itertools.product(natives, endings))


def cpu_features() -> str:
    """What tells processors apart for which -march=native gives different code."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:  # the first processor will do; all the lines of hundreds of them take a while
            if line.startswith(("flags", "Features")):
                return line.strip()
    return platform.processor()


# ----- CUDA ---------------------------------------------------------------------------------------------------------


def cuda_compiler() -> str:
    """Absolute path of nvcc; BuildError if there is none.

    In this order: in CUDA_HOME, in CUDA_PATH; on PATH, in /usr/local/cuda*, among the nvidia packages of this Python,
    of these first what suits PyTorch.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    named = [os.path.join(home, "bin", "nvcc") for home in homes]
    folders = [Path("/usr/local").glob("cuda*/bin/nvcc"), *(Path(p, "nvidia").glob("*/bin/nvcc") for p in sys.path)]
    others = ["nvcc", *(str(path) for found in folders for path in sorted(found))]
    present = [path for path in map(shutil.which, others) if path]
    for path in [*filter(shutil.which, named), *sorted(present, key=_mismatch)]:
        return os.path.abspath(path)
    raise BuildError(
        "No CUDA compiler was found: there is no nvcc in the bin folder of CUDA_HOME, CUDA_PATH or /usr/local/cuda*, on "
        "PATH, or among the nvidia packages of this Python. Install the CUDA toolkit, of the version of "
        "torch.version.cuda, and set CUDA_HOME to its folder."
    )


def _mismatch(nvcc: str) -> int:
    """0 if nvcc's folder names the major version of PyTorch's CUDA, 1 if it names none, 2 for another.

    What a newer one makes may need a newer driver than the one that serves PyTorch.
    """
    import torch  # only here: all else works without it, and starts at once

    wanted = (torch.version.cuda or "").partition(".")[0]
    named = re.search(r"/cu(?:da-)?(\d+)", os.path.realpath(nvcc))
    if not wanted or not named:
        return 1
    return 0 if named[1] == wanted else 2


def cuda_flags(
    nvcc: Path, arch: tuple[int, int], host: Sequence[str]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Flags for nvcc, best first, and further ones for its last step.

    The best make machine code for the GPU. An nvcc that is older than the GPU takes none of these: then it makes PTX for
    the newest GPU that it knows, which the driver compiles.

    Args:
        nvcc: Absolute path.
        arch: Compute capability.
        host: The C++ compiler.
    """
    number = 10 * arch[0] + arch[1]
    targets = [f"arch=compute_{number},code=sm_{number}"]
    targets += [f"arch=compute_{n},code=compute_{n}" for n in PTX_ARCHITECTURES if n < number]
    flags = [*CUDA_FLAGS]
    if os.environ.get("CXX"):  # without its arguments, for which nvcc has no place, or a launcher such as ccache
        flags += ["-ccbin", next((w for w in host if shutil.which(w) and not w.endswith("cache")), host[0])]
    packages = nvcc.parents[2]
    if packages.name != "nvidia":
        return _for_targets(flags, targets), ("-cudart", "static")
    # pip brings the toolkit in pieces: all in one folder since CUDA 13, a folder for each before.
    flags += [f"-I{folder}" for folder in sorted(packages.glob("*/include"))]
    libraries = sorted(packages.glob("*/lib"))
    link = [f"-L{folder}" for folder in libraries]
    shared = [path for folder in libraries for path in sorted(folder.glob("libcudart.so.*"))]
    if shared and not any((folder / "libcudart_static.a").exists() for folder in libraries):
        # What PyTorch has loaded; without a libcudart.so beside it the linker does not find it by its short name.
        return _for_targets(flags, targets), (*link, "-cudart", "none", "-Xlinker", str(shared[-1]))
    return _for_targets(flags, targets), (*link, "-cudart", "static")


def _for_targets(flags: Sequence[str], targets: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((*flags, "-gencode", target) for target in targets)


# ----- ninja --------------------------------------------------------------------------------------------------------


def ninja_program() -> str:
    """Path of ninja: of the package of that name, else on PATH; BuildError if there is none."""
    folders = [os.environ.get("PATH", "")]
    with contextlib.suppress(ImportError):
        import ninja

        folders.insert(0, ninja.BIN_DIR)
    path = shutil.which("ninja", path=os.pathsep.join(folders))
    if path is None:
        raise BuildError("The program ninja was not found, which runs the compiler; install it with: pip install ninja")
    return path

"""The kernels' builder: sources become a shared library on first use, once per machine, or one sentence says why not.

The sources are plain C++ and CUDA without PyTorch's headers, so that one library serves every PyTorch and Python. It stays
in the cache under a key that holds everything it depends on, and a process that finds it there only loads it. Nothing
here runs at import.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, cache_folder, is_trusted, new_temporary_folder, private_cache, sha256
from torch_utils.ops import toolchain
from torch_utils.ops.toolchain import BuildError, compilers

__all__ = ["Build", "BuildError", "compilers", "library", "plan"]

FORMAT = 1
"""Counted up when this file comes to build something else from the same facts."""

CSRC = Path(__file__).parent / "csrc"

PATTERNS = {"cpu": (("*.cpp",), ("*.h",)), "cuda": (("cuda/*.cu",), ("*.h", "cuda/*.h", "cuda/*.cuh"))}
"""Sources and headers in ``CSRC`` of each kind of library."""

TRIAL = """
#include <vector>
extern "C" int trial(int n) {
    std::vector<int> x(n);
    #pragma omp parallel for
    for (int i = 0; i < n; i++) x[i] = i;
    return x.back();
}
"""
"""What a compiler must manage for its flags to be taken: the C++ library and, if they say so, OpenMP."""

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems say that have no locks."""

WORDLESS_SECONDS, LOCK_SECONDS = 3.0, 600.0
"""How long another process that builds is waited for without a word, and in all."""

DISK_FULL = ("No space left on device", "Disk quota exceeded")

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_libraries: dict[tuple[str, tuple[int, int] | None], ctypes.CDLL | str] = {}  # str: why there is none


@dataclass(frozen=True)
class Build:
    """How a library comes about.

    Attributes:
        kind: "cpu" or "cuda".
        compiler: Absolute path of the compiler, and the arguments that ``$CXX`` gives it; empty if there is none.
        variants: Flags; the first variant that the compiler takes is used.
        link: Further flags of the last step.
        sources: Files to compile.
        key: Hashes of what the library is made for, and of what it is made by.
        library: Where it is in the cache, once it is built.
    """

    kind: str
    compiler: tuple[str, ...]
    variants: tuple[tuple[str, ...], ...]
    link: tuple[str, ...]
    sources: tuple[Path, ...]
    key: str
    library: Path

    def __str__(self) -> str:
        return "CPU kernels" if self.kind == "cpu" else "CUDA kernels"

    @property
    def checksum(self) -> Path:
        """File with the library's SHA-256: to load one that was cut off can end the process (SIGBUS)."""
        return self.library.with_suffix(".sha256")

    @property
    def is_built(self) -> bool:
        """Whether the library is in the cache, whole."""
        try:
            return self.checksum.read_text("utf-8") == sha256(self.library)
        except (OSError, ValueError):
            return False


def library(kind: str, arch: tuple[int, int] | None = None) -> ctypes.CDLL:
    """The compiled kernels: of this process, else from the cache, else built, by one process for which others wait.

    Args:
        kind: "cpu" or "cuda".
        arch: Compute capability of the GPU, for "cuda".

    Raises:
        BuildError: there is no suitable compiler, or it fails; another call raises the same, and tries nothing.
    """
    with _lock:
        if (kind, arch) not in _libraries:
            try:
                _libraries[kind, arch] = _obtain(plan(kind, arch))
            except BuildError as error:
                _libraries[kind, arch] = str(error)
                raise
        found = _libraries[kind, arch]
    if isinstance(found, str):
        raise BuildError(found)
    return found


def plan(kind: str, arch: tuple[int, int] | None = None) -> Build:
    """How ``library`` comes by the kernels; reads files, but runs and writes nothing. Raises BuildError likewise.

    Where there is no compiler it is a library of the same sources for the same processor that is in the cache already, as on
    the nodes of a cluster that share it with one that has a compiler; its ``compiler`` is then empty.
    """
    if (kind == "cuda") != (arch is not None) or kind not in PATTERNS:
        raise ValueError(f"kind is {kind!r}, arch {arch}, but it must be 'cpu', or 'cuda' with a compute capability.")
    sources, headers = (sorted(p for pattern in patterns for p in CSRC.glob(pattern)) for patterns in PATTERNS[kind])
    if not sources:
        raise BuildError(f"The sources of the {kind} kernels are missing in {CSRC}; install the project once more.")
    contents = {path.relative_to(CSRC).as_posix(): sha256(path) for path in (*sources, *headers)}
    target = [platform.machine(), *([toolchain.cpu_features()] if kind == "cpu" else [])]
    purpose = _hash([FORMAT, kind, arch, target, contents])
    try:
        folder = cache_folder().absolute() / "kernels"
    except OSError as error:
        raise BuildError(f"There is no place to keep compiled kernels in ({error}); set MULTISCALE_CACHE.") from error

    def build(
        key: str, compiler: tuple[str, ...], variants: tuple[tuple[str, ...], ...], link: tuple[str, ...]
    ) -> Build:
        library = folder / key / f"libmultiscale_{kind}.so"
        return Build(kind, compiler, variants, link, tuple(sources), key, library)

    try:
        host = toolchain.host_compiler()
        if arch is None:
            compiler, variants, link = host, toolchain.host_variants(), tuple[str, ...]()
        else:
            compiler = (toolchain.cuda_compiler(),)
            variants, link = toolchain.cuda_flags(Path(compiler[0]), arch, host)
    except BuildError:
        for path in sorted(folder.glob(f"{purpose}-*")):
            if (found := build(path.name, (), (), ())).is_built:
                return found
        raise
    made_by = _hash([[toolchain.identity(word) for word in (*compiler, *host)], variants, link])
    return build(f"{purpose}-{made_by}", compiler, variants, link)


def _hash(facts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


# ----- cache --------------------------------------------------------------------------------------------------------


def _obtain(build: Build) -> ctypes.CDLL:
    """Load the library, built if need be; for this process alone if the cache cannot be written.

    A library is code: it is loaded from a folder only that nobody but this user and root can have written into.
    """
    try:
        if not is_trusted(build.library):
            build = _elsewhere(build)
        loaded = _load_built(build)
        if loaded is None and not build.compiler:
            raise BuildError(f"{build.library} cannot be loaded, and there is no compiler to build it once more.")
        return loaded or _build_in_cache(build)
    except (OSError, UserError) as error:
        warnings.warn(
            f"The compiled {build} cannot be kept ({str(error).rstrip('.')}), so that each process compiles "
            "its own; set MULTISCALE_CACHE to a folder that can be written.",
            RuntimeWarning,
            stacklevel=4,
        )
    try:
        folder = new_temporary_folder("multiscale-kernels")
        try:
            return _load(_compile(build, folder))  # what is loaded outlives its file
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise BuildError(f"The {build} cannot be built in a temporary folder either: {error}.") from error


def _elsewhere(build: Build) -> Build:
    """The same build in a cache of this user's own; says so."""
    own = private_cache() / "kernels" / build.key / build.library.name
    _logger.warning(
        "Others than this user can write into %s, or own it: compiled kernels are kept in %s instead. Take their right to "
        "write away, or set MULTISCALE_CACHE to a folder of your own.",
        build.library.parent.parent,
        own.parent.parent,
    )
    return dataclasses.replace(build, library=own)


def _load_built(build: Build) -> ctypes.CDLL | None:
    """The library from the cache; None if it is not there, or is no use and has to be built once more."""
    if build.is_built:
        try:
            return _load(build.library)
        except OSError as error:
            _logger.info("%s has to be built once more: %s", build.library, error)
    return None


def _build_in_cache(build: Build) -> ctypes.CDLL:
    """Build the library, or wait for the process that does; OSError or UserError if the cache cannot be written."""
    folder = build.library.parent
    _make_folders(folder)
    with _locked(folder / "lock") as is_alone:
        loaded = _load_built(build)
        if loaded is not None:
            return loaded
        if is_alone:
            _remove_stale(folder, keep={"lock", build.library.name, build.checksum.name})
        temporary = new_temporary_folder("building", folder)
        try:
            built = _compile(build, temporary)
            with atomic_write(build.checksum, "w") as text:
                text.write(sha256(built))
            with atomic_write(build.library) as stream:
                if hasattr(os, "fchmod"):
                    os.fchmod(stream.fileno(), 0o755)  # whatever the umask: others may not write
                stream.write(built.read_bytes())
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    try:
        return _load(build.library)
    except OSError as error:
        raise BuildError(f"The {build} were compiled, but cannot be loaded: {error}.") from error


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, into which others may not write whatever the umask; OSError if they may anyway."""
    for place in reversed([folder, *folder.parents]):
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o755)
    if not is_trusted(folder):
        raise PermissionError(errno.EPERM, "others than this user can write there", str(folder))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock among processes; yields False where the file system has none: renaming keeps a build safe all the same.

    A process that holds it is waited for, with a word, for ``LOCK_SECONDS`` (then: OSError).

    The lock is the operating system's and goes when its process does, however that ends. A file whose mere existence is
    the lock would outlive a killed process, and every later one would wait for it.
    """
    from filelock import FileLock  # not in the way of those who find the library built

    lock = FileLock(path, fallback_to_soft=False)
    with contextlib.suppress(NotImplementedError):
        try:
            lock.acquire(timeout=WORDLESS_SECONDS)
        except TimeoutError:
            print("Waiting for another process that compiles the kernels ...", file=sys.stderr, flush=True)
            lock.acquire(timeout=LOCK_SECONDS)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _remove_stale(folder: Path, keep: set[str]) -> None:
    """Remove what processes left that were killed in the middle of a build."""
    for path in folder.iterdir():
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()


# ----- loading ------------------------------------------------------------------------------------------------------


def _load(path: Path) -> ctypes.CDLL:
    """OSError if the library cannot be loaded."""
    _share_openmp()
    return ctypes.CDLL(str(path))


class _SymbolInfo(ctypes.Structure):  # Dl_info of dladdr(3)
    _fields_ = [("file", ctypes.c_char_p), *((name, ctypes.c_void_p) for name in ("base", "symbol", "address"))]


def _share_openmp() -> None:
    """Have libraries that are loaded from now on use PyTorch's OpenMP threads.

    PyTorch brings an OpenMP runtime of its own; a second one in the process would start as many threads again, to fight
    with PyTorch's, which spin while they wait for work. The loader takes PyTorch's libgomp for the one that a library
    asks for if its name (SONAME) is the same. For any other name or runtime (libiomp5 has GCC's functions too) it is
    the order of search that helps: the global scope comes first. So find the file that serves PyTorch's own calls, and
    make it global.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):  # a PyTorch without OpenMP: nothing to share
        function = ctypes.cast(ctypes.CDLL(torch._C.__file__).omp_get_max_threads, ctypes.c_void_p)
        info = _SymbolInfo()
        if ctypes.CDLL(None).dladdr(function, ctypes.byref(info)) and info.file:
            ctypes.CDLL(os.fsdecode(info.file), mode=ctypes.RTLD_GLOBAL)


# ----- compiling ----------------------------------------------------------------------------------------------------


def _compile(build: Build, folder: Path) -> Path:
    """Compile into an empty folder; returns the library. BuildError if the compiler fails, OSError if the disk is full."""
    text = f"Compiling the {build} with {build.compiler[0]} (some seconds, once per machine) ..."
    print(text, file=sys.stderr, flush=True)
    start = time.monotonic()
    path = _run_ninja(build, _accepted_flags(build, folder / "trial"), build.sources, folder)
    _logger.info("Compiled the %s in %.1f s: %s", build, time.monotonic() - start, build.key)
    return path


def _accepted_flags(build: Build, folder: Path) -> tuple[str, ...]:
    """The first variant that the compiler takes, or the last; ``folder`` is made if there is a choice."""
    *choice, last = build.variants
    if choice:
        folder.mkdir()
        (folder / "trial.cpp").write_text(TRIAL, encoding="utf-8")
    for flags in choice:
        with contextlib.suppress(BuildError):
            _run_ninja(build, flags, [folder / "trial.cpp"], folder)
            return flags
    return last


def _run_ninja(build: Build, flags: Sequence[str], sources: Sequence[Path], folder: Path) -> Path:
    """Compile each source, as many at a time as there are processors (ninja sees to that), and link; returns the library.

    What each step says goes to a log of its own, for the BuildError.
    """
    objects = [f"{source.stem}.o" for source in sources]
    name = build.library.name
    steps = [(["-c", str(source)], o, "") for source, o in zip(sources, objects, strict=True)]
    steps.append((["-shared", *objects, *build.link], name, " ".join(objects)))
    text = ""
    for i, (arguments, output, inputs) in enumerate(steps):
        command = shlex.join([*build.compiler, *flags, *arguments, "-o", output]).replace("$", "$$")
        text += f"rule step{i}\n  command = {command} > {output}.log 2>&1\nbuild {output}: step{i} {inputs}\n"
    (folder / "build.ninja").write_text(text, encoding="utf-8")
    code, said = _run([toolchain.ninja_program()], folder)
    if code == 0:
        return folder / name
    logs = [folder / f"{output}.log" for _, output, _ in steps if not (folder / output).exists()]
    said = "\n".join(log.read_text("utf-8", "replace") for log in logs if log.exists()).strip() or said
    if any(words in said for words in DISK_FULL):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    raise BuildError(f"{build.compiler[0]} could not compile the {build}; it said:\n{_excerpt(said)}")


def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output of a program in a folder; it ends, with its children, if this process is interrupted."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"LC_ALL": "C", "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}.") from error
    with process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()  # ninja ends the compilers, then itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()
            raise
    return process.returncode, output


def _excerpt(text: str) -> str:
    """The last six lines; if the first error is not among them, it stands at their head."""
    lines = [line for line in text.splitlines() if line.strip()]
    tail = lines[-6:]
    first = next((line for line in lines if "error" in line.lower()), None)
    return "\n".join(tail if first is None or first in tail else [first, "...", *tail[-4:]])

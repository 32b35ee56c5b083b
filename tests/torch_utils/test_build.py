"""Kernels are built once per machine, whatever happens to those who build them; tried with a kernel of one line."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
import torch

from dnnlib.errors import UserError
from torch_utils.ops import __main__ as doctor
from torch_utils.ops import build, toolchain
from torch_utils.ops.build import BuildError

ROOT = Path(__file__).parents[2]
PRELUDE = "import sys, pathlib\nfrom torch_utils.ops import build\nbuild.CSRC = pathlib.Path(sys.argv[1])\n"
PATIENCE_SEC = 300

needs_compiler = pytest.mark.skipif(toolchain.compilers()["cpu"] is None, reason="needs a C++ compiler (or CXX)")
needs_nvcc = pytest.mark.skipif(toolchain.compilers()["cuda"] is None, reason="needs nvcc (or CUDA_HOME)")


@pytest.fixture(autouse=True)
def csrc(tmp_path, monkeypatch):
    """Folder with a kernel that is quick to compile; the cache is empty, and nothing is remembered."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "toy.h").write_text("#define ANSWER 42\n")
    (folder / "toy.cpp").write_text(
        '#include "toy.h"\nextern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'
    )
    monkeypatch.setattr(build, "CSRC", folder)
    monkeypatch.setattr(build, "_libraries", {})
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    return folder


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Compiler:
    """A C++ compiler that keeps a log, and whose first call hangs while there is a file ``hangs``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.hangs, self.hanging, self.alive = (folder / n for n in ("log", "hangs", "hanging", "alive"))
        real = shlex.join(toolchain.host_compiler())
        hang = f"mv {self.hangs} {self.hanging} 2>/dev/null && "
        hang += f"while [ -e {self.hanging} ]; do touch {self.alive}; sleep 0.05; done"
        self.path = script(folder / "logging-c++", f'echo "$*" >> {self.log}\n{hang}\nexec {real} "$@"')
        monkeypatch.setenv("CXX", str(self.path))

    @property
    def builds(self) -> int:
        """How often the kernel was compiled."""
        return self.log.read_text().count("toy.cpp") if self.log.exists() else 0

    def wait_until_it_hangs(self) -> None:
        wait_until(self.alive.exists)

    def wait_until_it_is_gone(self) -> None:
        """By its signs of life: its process's id may stay, as a zombie, for as long as init likes."""

        def is_gone() -> bool:
            self.alive.unlink(missing_ok=True)
            time.sleep(0.5)
            return not self.alive.exists()

        wait_until(is_gone)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SEC
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    compiler = Compiler(tmp_path, monkeypatch)
    yield compiler
    compiler.hanging.unlink(missing_ok=True)


def start(csrc: Path, program: str) -> subprocess.Popen:
    """Another process that runs a program with ``build`` imported."""
    command = [sys.executable, "-c", PRELUDE + program, str(csrc)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer_of(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=PATIENCE_SEC)
    assert process.returncode == 0, err
    return out.strip()


ANSWER = "print(build.library('cpu').answer())\n"
NO_PROGRAMS = (
    "def refuse(event, _):\n    assert event not in ('subprocess.Popen', 'os.system', 'os.fork', 'os.posix_spawn')\n"
)


def whole_build(folder: Path) -> bool:
    """Whether a key's folder has a library and nothing of an unfinished one."""
    return sorted(p.name for p in folder.iterdir()) == ["libmultiscale_cpu.sha256", "libmultiscale_cpu.so", "lock"]


# ----- once ---------------------------------------------------------------------------------------------------------


@needs_compiler
def test_first_use_builds_and_the_next_process_runs_no_program(csrc, compiler, capfd):
    found = build.library("cpu")
    assert found.answer() == 42
    assert build.library("cpu") is found
    assert capfd.readouterr().err.count("\n") == 1, "one line for those who wait"
    assert whole_build(build.plan("cpu").library.parent)
    watch = NO_PROGRAMS + "sys.addaudithook(refuse)\n"
    assert answer_of(start(csrc, watch + ANSWER)) == "42"
    assert compiler.builds == 1


@needs_compiler
def test_processes_and_threads_at_once_build_once(csrc, compiler):
    processes = [start(csrc, ANSWER) for _ in range(8)]
    assert [answer_of(process) for process in processes] == ["42"] * 8
    assert compiler.builds == 1

    (csrc / "toy.h").write_text("#define ANSWER 43\n")
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(build.library("cpu").answer())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [43] * 8
    assert compiler.builds == 2


@needs_compiler
def test_a_killed_process_stops_no_other(csrc, compiler):
    compiler.hangs.touch()
    killed = start(csrc, ANSWER)
    compiler.wait_until_it_hangs()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    folder = build.plan("cpu").library.parent
    assert list(folder.glob(".building.*.tmp"))
    assert not build.plan("cpu").is_built
    assert answer_of(start(csrc, ANSWER)) == "42"
    assert whole_build(folder)


@needs_compiler
def test_ctrl_c_ends_the_compiler_and_leaves_nothing(csrc, compiler):
    compiler.hangs.touch()
    process = start(csrc, ANSWER)
    compiler.wait_until_it_hangs()
    process.send_signal(signal.SIGINT)  # to this process only: a terminal's would reach the compiler too
    _, err = process.communicate(timeout=PATIENCE_SEC)
    assert "KeyboardInterrupt" in err
    compiler.wait_until_it_is_gone()
    assert [p.name for p in build.plan("cpu").library.parent.iterdir()] == ["lock"]
    assert build.library("cpu").answer() == 42


@needs_compiler
def test_without_locks_it_builds_all_the_same(monkeypatch):
    def no_locks(self, **_):
        raise OSError(build.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    assert build.library("cpu").answer() == 42
    assert build.plan("cpu").is_built


# ----- the cache ----------------------------------------------------------------------------------------------------


@needs_compiler
def test_key_holds_everything_that_the_library_depends_on(csrc, compiler, monkeypatch):
    keys = [build.plan("cpu").key]
    assert build.plan("cpu").key == keys[0]

    def note() -> None:
        keys.append(build.plan("cpu").key)

    (csrc / "toy.h").write_text("#define ANSWER 7\n")
    note()
    (csrc / "other.cpp").write_text("int other;\n")
    note()
    monkeypatch.setattr(toolchain, "HOST_FLAGS", (*toolchain.HOST_FLAGS, "-g"))
    note()
    monkeypatch.setattr(toolchain, "cpu_features", lambda: "flags: fpu")
    note()
    monkeypatch.setattr(build, "FORMAT", build.FORMAT + 1)
    note()
    os.utime(compiler.path, (1, 1))
    note()
    monkeypatch.setenv("CXX", f"{compiler.path} -DNDEBUG")
    note()
    assert len(set(keys)) == len(keys)
    assert not Path(os.environ["MULTISCALE_CACHE"]).exists(), "a plan writes nothing"


@needs_compiler
@pytest.mark.parametrize("damage", ["cut off", "no library", "half written"])
def test_damaged_library_is_built_once_more(csrc, compiler, damage):
    assert answer_of(start(csrc, ANSWER)) == "42"
    planned = build.plan("cpu")
    data = planned.library.read_bytes()
    planned.library.write_bytes(data[: len(data) // 2] if damage == "cut off" else b"not a library")
    if damage == "no library":  # as if built for another system
        planned.checksum.write_text(build.sha256(planned.library))
    if damage == "half written":
        planned.checksum.unlink()
    assert build.library("cpu").answer() == 42
    assert planned.is_built
    assert compiler.builds == 2


@needs_compiler
@pytest.mark.parametrize("where", ["below a file", "no such place", "full", "not ours"])
def test_cache_that_cannot_be_written_costs_a_warning(where, tmp_path, monkeypatch):
    if where == "below a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "file" / "cache"))
    elif where == "no such place":
        if not Path("/proc/self").exists():
            pytest.skip("needs /proc")
        monkeypatch.setenv("MULTISCALE_CACHE", "/proc/self/cache")
    elif where == "full":

        def full(*_):
            raise UserError("Cannot write the library: No space left on device.")

        monkeypatch.setattr(build, "atomic_write", full)
    else:
        if os.getuid() == 0:
            pytest.skip("needs a user whom permissions bind: not root")
        (tmp_path / "cache").mkdir(mode=0o500)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.warns(RuntimeWarning, match="MULTISCALE_CACHE") as caught:
        assert build.library("cpu").answer() == 42
    assert build.library("cpu").answer() == 42
    assert len(caught) == 1
    assert list(temporary.iterdir()) == []


@needs_compiler
def test_built_library_is_used_where_nothing_can_be_written(csrc, monkeypatch):
    assert answer_of(start(csrc, ANSWER)) == "42"

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(build, "_build_in_cache", refuse)
    assert build.library("cpu").answer() == 42


@needs_compiler
def test_where_there_is_no_compiler_what_another_machine_built_is_used(csrc, monkeypatch):
    assert answer_of(start(csrc, ANSWER)) == "42"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    planned = build.plan("cpu")
    assert planned.is_built
    assert not planned.compiler
    assert build.library("cpu").answer() == 42
    (csrc / "toy.h").write_text("#define ANSWER 7\n")
    with pytest.raises(BuildError, match=r"No C\+\+ compiler was found"):
        build.plan("cpu")


# ----- failures -----------------------------------------------------------------------------------------------------


def test_no_compiler_says_where_it_looked(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    for _ in range(2):
        with pytest.raises(BuildError, match=r"(?s)c\+\+, g\+\+, clang\+\+ on PATH.*apt install g\+\+.*CXX"):
            build.library("cpu")
    assert build.compilers()["cpu"] is None
    monkeypatch.setenv("CXX", "nonesuch-c++ -g")
    with pytest.raises(BuildError, match=r"CXX is 'nonesuch-c\+\+ -g'"):
        build.plan("cpu")
    monkeypatch.setenv("CXX", "unclosed 'quote")
    with pytest.raises(BuildError, match="cannot be split"):
        build.plan("cpu")


def test_broken_compiler_is_quoted_and_not_asked_again(tmp_path, monkeypatch):
    log = tmp_path / "log"
    says = 'echo "file: error: it is Monday"\nfor i in 1 2 3 4 5 6 7 8; do echo "line $i"; done >&2\nexit 1'
    monkeypatch.setenv("CXX", str(script(tmp_path / "broken-c++", f"echo x >> {log}\n{says}")))
    with pytest.raises(BuildError) as first:
        build.library("cpu")
    calls = log.read_text()
    message = str(first.value)
    assert message.startswith(f"{tmp_path}/broken-c++ could not compile the CPU kernels; it said:\n")
    assert message.splitlines()[1:] == ["file: error: it is Monday", "...", "line 5", "line 6", "line 7", "line 8"]
    with pytest.raises(BuildError) as second:
        build.library("cpu")
    assert str(second.value) == message
    assert log.read_text() == calls
    assert [p.name for p in build.plan("cpu").library.parent.iterdir()] == ["lock"]


@needs_compiler
def test_mistake_in_a_source_is_quoted(csrc):
    (csrc / "toy.cpp").write_text("int f() { return nonesuch; }\n")
    with pytest.raises(BuildError, match="nonesuch"):
        build.library("cpu")


@needs_compiler
def test_flags_that_a_compiler_rejects_are_left_out(tmp_path, monkeypatch):
    real = shlex.join(toolchain.host_compiler())
    rejects = f'case "$*" in *=native*) echo "error: what is native?"; exit 1;; esac\nexec {real} "$@"'
    monkeypatch.setenv("CXX", str(script(tmp_path / "plain-c++", rejects)))
    assert build.library("cpu").answer() == 42


def test_full_disk_everywhere_is_an_error(tmp_path, monkeypatch):
    complaint = "echo 'error: cannot write: No space left on device'; exit 1"
    monkeypatch.setenv("CXX", str(script(tmp_path / "c++", complaint)))
    with pytest.warns(RuntimeWarning, match="No space left"), pytest.raises(BuildError, match="No space left"):
        build.library("cpu")


@needs_compiler
def test_missing_sources_and_ninja(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build, "CSRC", tmp_path)
        with pytest.raises(BuildError, match="missing"):
            build.plan("cpu")
    monkeypatch.setattr(toolchain.shutil, "which", lambda *_, **__: None)
    with pytest.raises(BuildError, match="pip install ninja"):
        toolchain.ninja_program()


@pytest.mark.parametrize("text", ["gpu", "cuda", "cuda:90", "cpu:9.0"])
def test_kernels_to_build_are_named_by_kind_and_capability(text):
    assert doctor.kernels("cpu") == ("cpu", None)
    assert doctor.kernels("cuda:12.0") == ("cuda", (12, 0))
    with pytest.raises(UserError, match=rf"--build {text} names no kernels; give cpu, or cuda: and"):
        doctor.kernels(text)


def test_kind_is_checked():
    for arguments in (("gpu",), ("cuda",)):
        with pytest.raises((ValueError, BuildError)):
            build.plan(*arguments)


# ----- PyTorch ------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_kernels_run_on_the_threads_of_pytorch(csrc):
    (csrc / "toy.cpp").write_text(
        'extern "C" __attribute__((visibility("default"))) int count() {\n'
        "    int n = 0;\n    #pragma omp parallel num_threads(4) reduction(+:n)\n    n++;\n    return n;\n}\n"
    )
    program = """
import os, torch
threads = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(4)
torch.relu(torch.randn(1000, 1000))
before = threads()
assert build.library("cpu").count() == 4
print(threads() - before)
"""
    assert answer_of(start(csrc, program)) == "0"


# ----- CUDA ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The nvidia packages of an environment, whose PyTorch has CUDA 99; there are compilers that do nothing."""
    folder = tmp_path / "site-packages" / "nvidia"
    script(folder / "cu99" / "bin" / "nvcc", "exit 1")
    for name in ("cu99/include", "cu99/lib", "cudnn/include", "cudnn/lib", "nvtx/lib"):
        (folder / name).mkdir(exist_ok=True, parents=True)
    (folder / "cu99" / "lib" / "libcudart.so.99").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CXX", f"{script(tmp_path / 'ccache', '')} {script(tmp_path / 'c++', '')} -g")
    (build.CSRC / "cuda").mkdir()
    (build.CSRC / "cuda" / "toy.cu").write_text("__global__ void f() {}\n")
    return folder


def test_nvcc_of_the_environment_is_found_with_its_folders(packages, tmp_path):
    planned = build.plan("cuda", (9, 0))
    flags = planned.variants[0]
    assert planned.compiler == (str(packages / "cu99" / "bin" / "nvcc"),)
    assert [f for f in flags if f.startswith("-I")] == [f"-I{packages}/cu99/include", f"-I{packages}/cudnn/include"]
    assert flags[flags.index("-gencode") + 1] == "arch=compute_90,code=sm_90"
    assert flags[flags.index("-ccbin") + 1] == str(tmp_path / "c++")
    folders = [f"-L{packages}/{name}/lib" for name in ("cu99", "cudnn", "nvtx")]
    assert planned.link == (*folders, "-cudart", "none", "-Xlinker", f"{packages}/cu99/lib/libcudart.so.99")
    (packages / "cu99" / "lib" / "libcudart_static.a").touch()
    assert build.plan("cuda", (9, 0)).link == (*folders, "-cudart", "static")
    assert build.plan("cuda", (8, 0)).key != planned.key


def test_named_toolkit_comes_first(packages, tmp_path, monkeypatch):
    nvcc = script(tmp_path / "cuda-12.4" / "bin" / "nvcc", "exit 1")
    monkeypatch.setenv("PATH", str(nvcc.parent))
    assert build.compilers()["cuda"] == (str(packages / "cu99" / "bin" / "nvcc"),), "it suits PyTorch"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda-12.4"))
    assert build.compilers()["cuda"] == (str(nvcc),)
    assert build.plan("cuda", (9, 0)).link == ("-cudart", "static")


def test_nvcc_that_is_older_than_the_gpu_leaves_the_rest_to_the_driver(packages, tmp_path, monkeypatch):
    says = 'echo "nvcc fatal : Unsupported gpu architecture"; exit 1'
    makes = 'while [ "$1" != -o ]; do shift; done; echo > "$2"'
    newest = f'case "$*" in *compute_1[0-9][0-9]*) {says};; esac\n{makes}'
    script(packages / "cu99" / "bin" / "nvcc", newest)
    planned = build.plan("cuda", (12, 0))
    folder = tmp_path / "build"
    folder.mkdir()
    flags = build._accepted_flags(planned, folder / "trial")
    assert flags[-2:] == ("-gencode", "arch=compute_90,code=compute_90")
    assert [f[-1] for f in build.plan("cuda", (8, 6)).variants] == [
        "arch=compute_86,code=sm_86",
        "arch=compute_80,code=compute_80",
        "arch=compute_75,code=compute_75",
    ]


def test_no_nvcc_says_where_it_looked(packages, monkeypatch):
    which = toolchain.shutil.which
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None if str(name).endswith("nvcc") else which(name))
    with pytest.raises(BuildError, match=r"(?s)CUDA_HOME.*PATH.*nvidia packages"):
        build.library("cuda", (9, 0))


@needs_compiler
@needs_nvcc
def test_cuda_kernels_are_compiled_without_a_gpu(csrc):
    (csrc / "cuda").mkdir()
    text = '#include "../toy.h"\n__global__ void kernel{0}(int* x) { *x = ANSWER; }\n'
    text += 'extern "C" __attribute__((visibility("default"))) int cuda{0}() { return ANSWER; }\n'
    for i in range(2):
        (csrc / "cuda" / f"toy{i}.cu").write_text(text.replace("{0}", str(i)))
    found = build.library("cuda", (9, 0))
    assert found.cuda0() == found.cuda1() == 42


def test_nothing_is_warned_of_in_an_ordinary_build():
    if toolchain.compilers()["cpu"] is None:
        pytest.skip("needs a C++ compiler (or CXX)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.library("cpu").answer() == 42

"""Launchers: who is stopped is named in time, who is left alone ends, and presets are where the code is."""

import datetime
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import small_patches
from torch.utils.data import DataLoader
from training.test_state import begin

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.runs.states import load_newest_state, states_of
from torch_utils import distributed, pulse
from torch_utils.pulse import Pulse, beating
from torch_utils.workers import failed_reading

ROOT = Path(__file__).parents[2]
PATIENCE_SEC = 120
needs_posix = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them; Linux and macOS run it")


# Who is stopped ------------------------------------------------------------------------------------------------------


def test_a_process_that_falls_silent_is_named_and_those_that_speak_or_have_ended_are_not():
    store = dist.HashStore()
    watcher, other = Pulse(store, 4, 0.2), Pulse(store, 4, 0.2)
    for rank in (0, 1, 2):
        other.beat(rank)
    assert watcher.stopped() == {}  # heard of for the first time; the fourth has not come yet
    for _ in range(4):
        time.sleep(0.1)
        other.beat(0)
        other.beat(2, ends=True)
        stopped = watcher.stopped()
    assert set(stopped) == {1}
    assert re.search(r"have not answered for 0.2 s: rank 1 \(\S+\)", watcher.complaint(stopped))
    other.beat(1)
    assert watcher.stopped() == {}


def test_a_process_beats_as_long_as_it_works_and_says_when_it_ends(monkeypatch):
    store, ended, clock = dist.HashStore(), [], SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(pulse.os, "_exit", ended.append)
    monkeypatch.setattr(pulse, "time", clock)
    watcher = Pulse(store, 1, 0.2)
    with beating(Pulse(store, 1, 0.2), 0, watches=True):
        for _ in range(6):
            clock.now += 0.15
            beat, deadline = watcher._store.get("0"), time.monotonic() + PATIENCE_SEC
            while watcher._store.get("0") == beat:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert watcher.stopped() == {}
    for _ in range(3):
        assert watcher.stopped() == {}
        clock.now += 1
    assert not ended


def test_the_last_beat_is_the_one_that_says_so_however_slow_the_store(monkeypatch):
    """What outlives the block is a thread in a call of the store: it aborts the interpreter, and beats once more."""

    class Thread(threading.Thread):
        def join(self, timeout=None):
            super().join(None if timeout is None else 0)  # on a machine so busy that no limit is enough

    class Slow(Pulse):
        def beat(self, rank, *, ends=False):
            if threading.current_thread().name == "pulse" and not ends:
                began.set()
                time.sleep(0.1)
            super().beat(rank, ends=ends)

    monkeypatch.setattr(pulse.threading, "Thread", Thread)
    store, began = dist.HashStore(), threading.Event()
    slow = Slow(store, 1, 0.2)
    with beating(slow, 0, watches=False):
        assert began.wait(PATIENCE_SEC)
    assert not any(thread.name == "pulse" for thread in threading.enumerate())
    assert slow._store.get("0") == pulse.ENDED


ENDS = """
import datetime
import torch, torch.distributed as dist
from pathlib import Path
from torch_utils import distributed
timeout = datetime.timedelta(seconds=100)
store = dist.TCPStore("127.0.0.1", 0, None, True, timeout, wait_for_workers=False)
with distributed._member(distributed.Process(torch.device("cpu")), store, timeout):
    import torch._dynamo  # as optimisers do: it imports what has the group as a default argument
print(*(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_threads_of_a_group_end_with_it_and_not_with_the_interpreter():
    done = subprocess.run([sys.executable, "-c", ENDS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout
    assert "gloo" not in done.stdout


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two', but it must be a whole number"),
        ("LOCAL_WORLD_SIZE", "-1", "LOCAL_WORLD_SIZE is '-1', but"),
        ("RANK", "2", "RANK is 2 and WORLD_SIZE 2, but it must be smaller"),
    ],
)
def test_what_a_launcher_sets_wrongly_is_one_sentence(monkeypatch, name, value, said):
    right = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for key, text in {**right, name: value}.items():
        monkeypatch.setenv(key, text)
    with pytest.raises(UserError, match=f"^{said}"), distributed.joined(on_cpu=True):
        pass


def stop_oneself(process):
    dist.all_reduce(torch.ones(1))
    if process.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(1))


@needs_posix
@pytest.mark.slow
def test_a_spawned_process_that_is_stopped_ends_the_job_in_time_with_its_name(monkeypatch):
    monkeypatch.setattr(distributed, "TIMEOUT", datetime.timedelta(seconds=14))
    with pytest.raises(UserError, match=r"Of 2 processes these have not answered for 7 s: rank 1 \("):
        distributed.run(stop_oneself, [torch.device("cpu")] * 2)


SCRIPT = """
import datetime, os, signal, sys, time
import torch, torch.distributed as dist
from torch_utils import distributed
with distributed.joined(on_cpu=True, timeout=datetime.timedelta(seconds=int(sys.argv[2]))) as process:
    dist.all_reduce(torch.ones(1))
    os.write(1, f"works {process.rank} {os.getpid()}\\n".encode())  # whole: both ranks have one pipe
    if sys.argv[1] == "stop" and process.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    if sys.argv[1] == "wait":
        time.sleep(600)
    dist.all_reduce(torch.ones(1))
"""


def torchrun(tmp_path, what, seconds):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*words, str(tmp_path / "script.py"), what, str(seconds)],
        stdout=-1,
        stderr=-1,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    ranks = {}
    while len(ranks) < 2:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        if found := re.fullmatch(r"works (\d) (\d+)\n", line):
            ranks[int(found[1])] = int(found[2])
    return process, [ranks[0], ranks[1]]


@needs_posix
@pytest.mark.slow
def test_a_rank_that_is_stopped_ends_what_torchrun_started_with_its_name(tmp_path):
    process, ranks = torchrun(tmp_path, "stop", 40)
    errors = ""
    while "have not answered" not in errors:
        line = process.stderr.readline()
        assert line, errors
        errors += line
    os.kill(ranks[1], signal.SIGCONT)  # torchrun waits half a minute before it kills what does not hear it
    errors += process.communicate(timeout=2 * PATIENCE_SEC)[1]
    assert process.returncode != 0
    assert len(re.findall(r"Error: Of 2 processes these have not answered for 20 s: rank 1 \(", errors)) == 1
    assert not any(map(lives, ranks))


@needs_posix
@pytest.mark.slow
def test_ranks_end_when_torchrun_is_killed(tmp_path):
    process, ranks = torchrun(tmp_path, "wait", 120)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + PATIENCE_SEC
    while any(map(lives, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(lives, ranks))


def lives(process):
    try:
        os.kill(process, 0)
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


@needs_posix
def test_elsewhere_than_on_linux_a_thread_looks_for_the_parent(tmp_path):
    program = (
        "import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid, flush=True); "
        "os.close(1); sys.stdin.readline()"  # the child alone can write, so its end is seen
    )
    child = (
        "import sys; sys.platform = 'other'\n"
        "from torch_utils import distributed\nimport time\n"
        "distributed.PARENT_SECONDS = 0.1\ndistributed._end_with_parent()\nprint('looks', flush=True)\n"
        "time.sleep(600)"
    )
    words = [sys.executable, "-c", program, child]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True, cwd=ROOT) as process:
        number = int(process.stdout.readline())
        assert process.stdout.readline() == "looks\n"
        assert lives(number)
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(PATIENCE_SEC)
    deadline = time.monotonic() + PATIENCE_SEC
    while lives(number) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives(number)


# Who reads -----------------------------------------------------------------------------------------------------------


class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@needs_posix
def test_a_reading_process_that_dies_is_one_sentence_and_the_state_is_kept(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(Deadly(), num_workers=1, multiprocessing_context="fork" if sys.platform == "linux" else None))
    trainer = begin(PatchDataset(small_patches(tmp_path / "p.zip")), tmp_path / "run", kimg=0.016)

    def batches():
        raise caught.value
        yield

    trainer._batches = batches
    with pytest.raises(
        UserError, match=r"reads patches has failed .*/dev/shm.*--shm-size.*training\.workers=0"
    ) as said:
        trainer.run()
    assert "\n" not in str(said.value)
    assert states_of(tmp_path / "run")


TRAINS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from training.test_state import begin
from dnnlib.cli import reports_user_errors
from multiscale.data.patches import PatchDataset

@reports_user_errors
def main():
    begin(PatchDataset(sys.argv[3]), Path(sys.argv[4]), kimg=0.2, workers=int(sys.argv[5])).run()

main()
"""


@needs_posix
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_patch_ends_a_run_and_its_readers_and_what_was_done_is_kept(tmp_path, workers):
    """At its exit Python waits for readers that are left, which ignore the signals that a job sends to all."""
    path = small_patches(tmp_path / "p.zip")
    with zipfile.ZipFile(path) as archive:
        damaged = [entry for entry in archive.infolist() if entry.filename.endswith(".png")][-2]
    data = bytearray(path.read_bytes())
    start = damaged.header_offset + 30 + len(damaged.filename) + damaged.compress_size // 2
    data[start] ^= 1
    path.write_bytes(data)
    folder = tmp_path / "run"
    command = [sys.executable, "-c", TRAINS, str(ROOT), str(ROOT / "tests"), str(path), str(folder), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SEC, cwd=ROOT / "tests")
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"Error: Patch {damaged.filename} in {path} cannot be used: it is damaged inside the ZIP")
    newest = load_newest_state(folder)
    assert newest["images"] == 4 * newest["step"] > 0
    assert states_of(folder)[-1].name == f"state-{newest['images']:09d}.pt"


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory.",
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
        "RuntimeError: unable to write to file </torch_1_2_3>: No space left on device (28)",
        "unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)",
        "received 0 items of ancdata",
    ],
)
def test_what_pytorch_says_of_shared_memory_becomes_a_sentence(text):
    said = failed_reading(RuntimeError(text))
    assert "--shm-size" in said
    assert "\n" not in said
    assert len(said) < 600
    assert failed_reading(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


# Packages ------------------------------------------------------------------------------------------------------------


def test_all_packages_and_the_presets_among_them_are_installed():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = re.findall(r'"([\w.]+)"', re.search(r"^packages = \[(.*?)\]", text, re.S | re.M)[1])
    folders = {path.parent for name in ("dnnlib", "multiscale", "torch_utils") for path in (ROOT / name).rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(listed) == sorted({*found, "multiscale.presets"})
    assert '"multiscale.presets" = "configs"' in text


@pytest.mark.slow
def test_an_installation_into_a_folder_has_its_presets(tmp_path):
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    wanted = {"multiscale", "torch_utils", "dnnlib", "configs", "pyproject.toml", "README.md", "LICENSE"}
    for name in tracked.stdout.split("\0"):
        if name.split("/")[0] in wanted:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    words = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*words, "--target", tmp_path / "x", source], check=True, cwd=tmp_path)
    program = "import multiscale.config as c; print(c.__file__, *c.preset_names()); c.load_preset('demo')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "x")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    place, *presets = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path / "x")
    assert presets == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))

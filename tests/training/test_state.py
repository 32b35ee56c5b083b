"""A run that is stopped or killed and started again is the run that never stopped, to the bit."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import small_patches
from training.test_trainer import CPU, beyond_run, stats, tiny_run

from dnnlib.errors import UserError
from dnnlib.signals import StopRequest
from multiscale.data.patches import PatchDataset
from multiscale.runs.folder import launcher
from multiscale.runs.headers import snapshots_of
from multiscale.runs.journal import read_metrics
from multiscale.runs.snapshots import load_snapshot
from multiscale.runs.states import load_newest_state, load_state, save_state, states_of
from multiscale.training.trainer import STOPPING, Trainer
from torch_utils.distributed import Process

ROOT = Path(__file__).parents[2]
PATIENCE_SEC = 300


def begin(dataset, folder, make=tiny_run, **training) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(make(dataset, **training), dataset, folder, Process(CPU))


def assert_equal(a, b, path=""):
    """Nested states are the same, bit for bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


@pytest.mark.parametrize("make, workers", [(tiny_run, 0), (tiny_run, 1), (beyond_run, 0)])
@pytest.mark.parametrize("stop", [1, 5, 7])  # between two adjustments of ADA, between two penalties
def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path, make, workers, stop, monkeypatch):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    options = {
        "kimg": 0.04,
        "augment": "ada",
        "r1_interval": 4,
        "snapshot_kimg": 0.016,
        "workers": workers,
        "make": make,
    }
    whole = begin(dataset, tmp_path / "whole", **options)
    whole.run()
    half = begin(dataset, tmp_path / "half", **options)
    monkeypatch.setattr(half, "_asked_to_stop", lambda _: signal.SIGINT if half.step == stop else 0)
    half.run()
    assert half.step == stop
    rest = begin(dataset, tmp_path / "half", **options)
    rest.load_state_dict(load_newest_state(tmp_path / "half"))
    rest.run()
    assert_equal(whole.state_dict(), rest.state_dict())
    assert_equal(load_newest_state(tmp_path / "whole"), load_newest_state(tmp_path / "half"))
    assert stats(tmp_path / "whole") == stats(tmp_path / "half")
    last = [load_snapshot(snapshots_of(tmp_path / name)[-1]).generator.state_dict() for name in ("whole", "half")]
    assert_equal(dict(last[0]), dict(last[1]))


@pytest.mark.parametrize("began, goes_on", [(False, True), (True, False)])
def test_a_run_may_go_on_with_one_probability_for_each_octave_or_for_all(tmp_path, began, goes_on):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    options = {"augment": "ada", "kimg": 0.024}
    run = begin(dataset, tmp_path / "a", ada_by_octave=began, **options)
    run.run()
    run.augment.p.copy_(torch.tensor([0.1, 0.3, 0.5]) if began else torch.tensor(0.3))
    rest = begin(dataset, tmp_path / "b", **options | {"ada_by_octave": goes_on, "kimg": 0.048})
    rest.load_state_dict(run.state_dict())
    torch.testing.assert_close(rest.augment.p, torch.full_like(rest.augment.p, 0.3))
    rest.run()
    assert rest.augment.p.shape == ((3,) if goes_on else ())


def test_two_states_are_kept_and_the_older_serves_if_the_newer_is_damaged(tmp_path, capsys):
    for images in (1, 2, 3):
        save_state(tmp_path, images, {"step": images, "config": {}})
    assert [path.name for path in states_of(tmp_path)] == ["state-000000002.pt", "state-000000003.pt"]
    newest = states_of(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert load_newest_state(tmp_path)["step"] == 2
    assert "Resuming from the one before" in capsys.readouterr().out
    states_of(tmp_path)[0].write_text("hello")
    with pytest.raises(UserError, match="not a whole training state"):
        load_newest_state(tmp_path)


def test_one_flipped_bit_of_a_state_is_seen(tmp_path, capsys):
    """PyTorch writes checksums and does not look at them."""
    for images in (1, 2):
        path = save_state(tmp_path, images, {"step": images, "config": {}, "G": {"x": torch.arange(1000.0)}})
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor([500.0, 501.0]).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["G"]["x"][500] != 500
    with pytest.raises(
        UserError, match=r"is not a whole training state; it may be truncated or damaged: use an older one\.$"
    ):
        load_state(path)
    assert load_newest_state(tmp_path)["step"] == 1


def test_a_state_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"format": "multiscale-training-state", "x": Payload()}, tmp_path / "state-000000001.pt")
    with pytest.raises(UserError, match="not a whole training state"):
        load_state(tmp_path / "state-000000001.pt")
    assert not (tmp_path / "ran").exists()
    for version, complaint in ((0, "older than the format .* finish the run"), (99, "newer than the format .* update")):
        torch.save({"format": "multiscale-training-state", "format_version": version}, tmp_path / "state-000000002.pt")
        with pytest.raises(UserError, match=complaint):
            load_state(tmp_path / "state-000000002.pt")
    torch.save({"other": 1}, tmp_path / "state-000000002.pt")
    with pytest.raises(UserError, match="not a training state of this program"):
        load_state(tmp_path / "state-000000002.pt")


def test_the_first_signals_are_requests_and_a_second_ctrl_c_interrupts():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_what_a_signal_begins_is_said_at_once_and_once(capfd):
    with StopRequest("Stopping.") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received
        assert capfd.readouterr().err == "\nStopping.\n"
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert capfd.readouterr().err == ""


def command(data, folder, kimg, *more):
    sets = [
        "generator.channel_max=16",
        "generator.channel_base=32",
        "training.sample_seeds=2",
        "training.metrics=null",
    ]
    options = [part for text in [*sets, "training.snapshot_kimg=0.008", *more] for part in ("--set", text)]
    base = [sys.executable, "train.py", "--data", data, "--outdir", folder, "--gpus", 0, "--batch", 4, "--kimg", kimg]
    return [str(word) for word in (*base, *options)]


@pytest.mark.slow
@pytest.mark.parametrize("processes, number", [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_finishes_the_step_says_how_to_go_on_and_that_it_is_not_the_end(tmp_path, processes, number):
    data = small_patches(tmp_path / "p.zip")
    words = [*command(data, tmp_path / "run", 100), "--procs", str(processes)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(states_of(tmp_path / "run")) > 1, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE_SEC)
    assert process.returncode == 128 + number
    assert errors.count(STOPPING) == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith("Stopped after ")
    assert f"To resume: {launcher()} train.py --data {data} --outdir {tmp_path / 'run'}" in last
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes as Linux lists them")
def test_a_process_that_is_killed_ends_the_others_with_one_sentence(tmp_path):
    data = small_patches(tmp_path / "p.zip")
    words = [*command(data, tmp_path / "run", 100), "--procs", "2"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(states_of(tmp_path / "run")) > 1, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    children = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(children) == 2
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE_SEC)
    assert process.returncode == 2
    assert "Error: Process 1 of the 2 was ended from outside" in errors
    assert "Traceback" not in errors
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_and_ends_the_same(tmp_path):
    """SIGKILL at random moments: never an unreadable state, never more than one snapshot's steps lost."""
    data, rng = small_patches(tmp_path / "p.zip"), random.Random(0)
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command(data, tmp_path / "whole", 0.064), check=True, **quiet)
    folder, images = tmp_path / "run", 0
    for _ in range(3):
        process = subprocess.Popen(command(data, folder, 0.064), **quiet)
        wait_for(lambda before=images: states_of(folder) and newest(folder) > before, process)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        seen = [int(path.stem.split("-")[1]) for path in snapshots_of(folder)]
        assert load_newest_state(folder)["images"] >= max(seen) - 8
        assert newest(folder) >= images
        images = newest(folder)
        for path in snapshots_of(folder):
            load_snapshot(path)
    subprocess.run(command(data, folder, 0.064), check=True, **quiet)
    assert stats(folder) == stats(tmp_path / "whole")
    assert_equal(load_newest_state(folder), load_newest_state(tmp_path / "whole"))


@pytest.mark.slow
def test_torchrun_trains_the_run_that_procs_trains_and_goes_on_with_it(tmp_path):
    """Begun by torchrun and ended by ``--procs``, or by ``--procs`` alone: the same to the bit."""
    data = small_patches(tmp_path / "p.zip")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    quiet = {"cwd": ROOT, "capture_output": True, "text": True, "env": environment}
    python, *words = command(data, tmp_path / "joined", 0.008)
    begun = subprocess.run([python, *launcher, *words], **quiet)
    assert begun.returncode == 0, begun.stderr
    assert begun.stdout.count("Data: ") == begun.stdout.count("Trained 0.008 kimg") == 1
    for name in ("joined", "spawned"):
        ended = subprocess.run([*command(data, tmp_path / name, 0.016), "--procs", "2"], **quiet)
        assert ended.returncode == 0, ended.stderr
    assert stats(tmp_path / "joined")[-1] == stats(tmp_path / "spawned")[-1]
    assert_equal(load_newest_state(tmp_path / "joined"), load_newest_state(tmp_path / "spawned"))
    refused = subprocess.run([python, *launcher, *words, "--batch-gpu", "3"], **quiet)
    assert refused.returncode != 0
    assert refused.stderr.count("--batch-gpu 3 does not divide") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_stops_a_run_with_one_sentence_and_its_earlier_state_whole(tmp_path, monkeypatch, number):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = begin(dataset, tmp_path / "run", kimg=0.1, snapshot_kimg=0.008)
    write = os.fsync

    def full(descriptor):
        if trainer.step >= 5:
            raise OSError(number, os.strerror(number))
        write(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"^Cannot write .*: {os.strerror(number)}"):
        trainer.run()
    assert load_newest_state(tmp_path / "run")["step"] == 4
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_state_that_pytorch_cannot_write_whole_is_a_full_disk(tmp_path, monkeypatch):
    def cut_off(_, stream):
        stream.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1949120 vs 1949012")

    save_state(tmp_path, 1, {"step": 1})
    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(UserError, match="the disk is full"):
        save_state(tmp_path, 2, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state-000000001.pt"]


def test_a_run_stopped_before_its_first_step_does_not_begin_twice(tmp_path, monkeypatch, capfd):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    run = begin(dataset, tmp_path / "run", metrics="swd4")
    monkeypatch.setattr(run, "train_step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(run, "_asked_to_stop", lambda _: signal.SIGINT)
    run.run()
    assert capfd.readouterr().err.count(STOPPING) == 1
    again = begin(dataset, tmp_path / "run", metrics="swd4")
    again.load_state_dict(load_newest_state(tmp_path / "run"))
    again.run()
    assert [line["kimg"] for line in read_metrics(tmp_path / "run")] == [0, 0.004, 0.008, 0.012, 0.016, 0.02]


def newest(folder):
    return int(states_of(folder)[-1].stem.split("-")[1])


def wait_for(condition, process):
    end = time.monotonic() + PATIENCE_SEC
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the run did not come so far"
        time.sleep(0.05)

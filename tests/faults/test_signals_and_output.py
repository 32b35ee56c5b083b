"""Signals are heard from the first import on; output that nobody reads ends nothing; the killed leave nothing for good."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import small_patches

from dnnlib import files
from dnnlib.errors import UserError
from dnnlib.files import atomic_write, new_temporary_folder
from dnnlib.signals import ENDING, StopRequest
from multiscale.data.prepare import make_demo

ROOT = Path(__file__).parents[2]
COMMAND = """
import multiscale.cli, click, os, pathlib, signal, sys, time
from dnnlib.cli import reports_user_errors
from dnnlib.files import atomic_write
from dnnlib.progress import progress_bar

@click.command()
@click.argument("dest")
@reports_user_errors
def main(dest):
    with atomic_write(dest, "w") as stream:
        stream.write("whole")
        BODY

main()
"""
TALK = """for i in progress_bar(iterable=range(2000)):
            print("x" * 50, flush=i % 100 == 0)
            print("y", file=sys.stderr)"""
WAIT = """print("writing", flush=True)
        time.sleep(float(os.environ.get("SECONDS", 60)))"""

needs_posix = pytest.mark.skipif(
    os.name == "nt", reason="signals and devices as POSIX has them; Linux and macOS run it"
)
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full (Linux)")


def command(body, dest):
    return [sys.executable, "-c", COMMAND.replace("BODY", body), str(dest)]


@needs_posix
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_nothing(tmp_path, stream):
    process = subprocess.Popen(command(TALK, tmp_path / "f"), cwd=ROOT, **{"stdout": -1, "stderr": -1})
    getattr(process, stream).close()
    setattr(process, stream, None)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "f").read_text() == "whole"
    assert b"Exception" not in (err or b"")
    assert out is None or len(out.splitlines()) == 2000


def test_in_a_log_each_state_of_a_bar_is_a_line(tmp_path):
    body = """with progress_bar(total=3, desc="tiles", mininterval=0) as bar:
            for _ in range(3): bar.update()"""
    done = subprocess.run(command(body, tmp_path / "f"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    assert [line.split("|")[0] for line in lines[:4]] == ["tiles:   0%", "tiles:  33%", "tiles:  67%", "tiles: 100%"]
    assert "\r" not in done.stderr


@needs_full
@pytest.mark.parametrize("stream, code", [("stdout", 1), ("stderr", 0)])
def test_a_full_disk_below_the_output_ends_nothing_and_the_code_says_what_was_written(tmp_path, stream, code):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(TALK, tmp_path / "f"), cwd=ROOT, timeout=60, **{"stdout": -1, "stderr": -1, stream: full}
        )
    assert done.returncode == code
    assert (tmp_path / "f").read_text() == "whole"
    if stream == "stdout":
        last = done.stderr.decode().splitlines()[-1]
        assert last == "Error: All files were written, but standard output could not be: No space left on device."


@needs_posix
def test_closed_standard_files_are_not_written_over(tmp_path):
    words = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command(TALK, tmp_path / "f")]
    assert subprocess.run(words, cwd=ROOT, timeout=60).returncode == 0
    assert (tmp_path / "f").read_text() == "whole"


def test_what_the_console_cannot_show_or_should_not_obey_is_escaped(tmp_path):
    body = r"print('a\u2192b \udcff \x1b[31m \x9b \x07 caf\xe9'); print('b\u2192', file=sys.stderr)"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command(body, tmp_path / "f"), cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [rb"a\u2192b", rb"\udcff", rb"\x1b[31m", rb"\x9b", rb"\x07", b"caf\xe9"]
    assert done.stderr.split() == [rb"b\u2192"]


@needs_posix
@pytest.mark.parametrize("number", [*ENDING, signal.SIGINT])
def test_signals_leave_no_half_written_file_and_no_traceback(tmp_path, number):
    process = subprocess.Popen(command(WAIT, tmp_path / "f"), cwd=ROOT, stdout=-1, stderr=-1)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors in (b"", b"Interrupted.\n")
    assert not list(tmp_path.iterdir())


@needs_posix
def test_a_terminal_that_closes_does_not_end_what_nohup_started(tmp_path):
    ignored = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command(WAIT, tmp_path / "f")]
    environment = {**os.environ, "SECONDS": "1"}
    process = subprocess.Popen(ignored, cwd=ROOT, env=environment, stdout=-1)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "f").read_text() == "whole"


@needs_posix
def test_a_run_takes_a_closed_terminal_for_a_request_unless_told_to_ignore_it():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.received
    finally:
        signal.signal(signal.SIGHUP, before)


@needs_posix
@pytest.mark.parametrize("name", ["train", "generate", "dataset_tool", "calc_metrics", "zoom"])
def test_ctrl_c_while_modules_are_imported_shows_no_traceback(tmp_path, name):
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [sys.executable, "-c", f"from multiscale.cli.{name} import main"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.stderr == b"Interrupted.\n"
    assert done.returncode in (-signal.SIGINT, 130)


@needs_posix
def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_has_is_not(tmp_path, monkeypatch):
    body = (
        "from dnnlib.files import new_temporary_folder\n"
        f"        (new_temporary_folder('folder', pathlib.Path({str(tmp_path)!r})) / 'film').write_text('x')\n        "
        + WAIT
    )
    process = subprocess.Popen(command(body, tmp_path / "f"), cwd=ROOT, stdout=-1)
    assert process.stdout.readline() == b"writing\n"
    left = sorted(tmp_path.iterdir())
    others = tmp_path / f".f.{'0' * 8}-{process.pid}-00000000.tmp"
    others.write_text("of another machine")
    assert [path.name.split(".")[1] for path in left] == ["f", "folder"]

    def write():
        monkeypatch.setattr(files, "_swept", set())
        with atomic_write(tmp_path / "g", "w") as stream:
            stream.write("mine")

    write()
    assert {*left, others, tmp_path / "g"} == set(tmp_path.iterdir())
    process.kill()
    process.communicate()
    write()
    assert {others, tmp_path / "g"} == set(tmp_path.iterdir())


@needs_posix
def test_what_was_left_beside_a_set_that_had_just_become_whole_is_removed_though_the_set_is_not_made_again(
    tmp_path, monkeypatch
):
    with zipfile.ZipFile(small_patches(tmp_path / "p.zip")) as archive:
        archive.extractall(tmp_path / "set")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / f".set.{files._host()}-{process.pid}-00000000.tmp").mkdir()
    monkeypatch.setattr(files, "_swept", set())
    with pytest.raises(UserError, match="set exists"):
        make_demo(tmp_path / "set", resolution=16)
    assert {tmp_path / "p.zip", tmp_path / "set"} == set(tmp_path.iterdir())


def test_temporary_folders_are_private_and_a_long_name_can_be_written(tmp_path):
    folder = new_temporary_folder("films", tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700 or os.name == "nt"
    long = tmp_path / ("n" * 251 + ".txt")
    with atomic_write(long, "w") as stream:
        stream.write("x")
    assert long.read_text() == "x"


@needs_posix
def test_what_another_machine_left_is_removed_when_nobody_has_touched_it_for_long(tmp_path, monkeypatch):
    fresh, old = (tmp_path / f".f.{'0' * 8}-1-{letter * 8}.tmp" for letter in "ab")
    folder, busy = (tmp_path / f".d.{'0' * 8}-1-{letter * 8}.tmp" for letter in "cd")
    others = tmp_path / ".f.tmp"
    for path in (fresh, old, others):
        path.write_text("x")
    for path in (folder, busy):
        path.mkdir()
        (path / "film").write_text("x")
    long_ago = time.time() - files.UNTOUCHED_SECONDS - 60
    for path in (old, others, folder / "film", folder, busy):
        os.utime(path, (long_ago, long_ago))
    files.remove_abandoned(tmp_path)
    assert set(tmp_path.iterdir()) == {fresh, busy, others}
    assert (busy / "film").exists()

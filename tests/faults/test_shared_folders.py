"""Shared folders: no code of others is loaded, nothing that others put in place of a file is written into."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import calibrated_generator, small_config

from dnnlib import files
from dnnlib.errors import UserError
from dnnlib.files import atomic_write, is_trusted, sha256
from multiscale.rendering.flights import Keyframe
from multiscale.rendering.renderer import Renderer
from multiscale.rendering.video import write_film
from multiscale.rendering.worlds import World
from torch_utils.ops import build

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="owners and modes as POSIX has them; Linux and macOS run it")
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to give files away")


# Trust ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    return tmp_path / "a" / "b" / "file"


def test_what_this_user_alone_can_write_is_trusted(place):
    assert is_trusted(place)
    assert is_trusted(place.parent / "not" / "there")


@pytest.mark.parametrize("above", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_what_others_can_write_is_not_but_a_sticky_folder_on_the_way_is(place, above, mode):
    target = [place, *place.parents][above]
    target.chmod(mode)
    assert is_trusted(place) == (above > 0 and mode == 0o1777)
    assert is_trusted(place.parent) == (above == 0 or (above > 1 and mode == 0o1777))


def test_a_group_of_this_user_alone_counts_as_the_user(place, monkeypatch):
    place.chmod(0o664)
    for alone in (True, False):
        monkeypatch.setattr(files, "_is_own_group", lambda _, alone=alone: alone)
        assert is_trusted(place) == alone


@as_root
def test_what_others_own_is_not_trusted_nor_what_lies_there(place):
    for target in (place, place.parent):
        os.chown(target, 12345, 12345)
        assert not is_trusted(place)
        os.chown(target, 0, 0)
    assert is_trusted(place)


def test_links_are_followed(place, tmp_path):
    (tmp_path / "link").symlink_to(place)
    assert is_trusted(tmp_path / "link")
    place.parent.chmod(0o777)
    assert not is_trusted(tmp_path / "link")


# Kernels -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A build in a cache, a compiler that takes no time, and what is loaded."""
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir(mode=0o700)
    loaded = []
    monkeypatch.setattr(build, "_load", lambda path: loaded.append(path.read_text()) or path)

    def compile_(_, folder):
        (folder / "new.so").write_text("ours")
        return folder / "new.so"

    monkeypatch.setattr(build, "_compile", compile_)
    library = tmp_path / "cache" / "kernels" / "key" / "libmultiscale_cpu.so"
    return build.Build("cpu", ("c++",), ((),), (), (), "key", library), loaded


def plant(planned):
    planned.library.parent.mkdir(parents=True)
    planned.library.write_text("theirs")
    planned.checksum.write_text(sha256(planned.library))


@pytest.mark.parametrize("above", [0, 1, 2, 3])
def test_a_library_that_others_could_have_planted_is_not_loaded(tmp_path, planned, caplog, above):
    planned, loaded = planned
    plant(planned)
    [planned.library, *planned.library.parents][above].chmod(0o777)
    for _ in range(2):
        build._obtain(planned)
    assert loaded == ["ours", "ours"]
    assert "Others than this user can write into" in caplog.text
    own = tmp_path / "temporary" / f"multiscale-{os.getuid()}"
    assert own.stat().st_mode & 0o777 == 0o700
    assert (own / "kernels" / "key" / planned.library.name).read_text() == "ours"
    assert planned.library.read_text() == "theirs"


def test_a_library_of_this_user_is_loaded_from_the_cache(planned, caplog):
    planned, loaded = planned
    plant(planned)
    build._obtain(planned)
    assert loaded == ["theirs"]
    assert not caplog.text


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_a_cache_that_is_made_is_closed_to_others_whatever_the_umask(planned, umask, caplog):
    planned, loaded = planned
    before = os.umask(umask)
    try:
        build._obtain(planned)
        build._obtain(planned)
    finally:
        os.umask(before)
    assert loaded == ["ours", "ours"]
    assert not caplog.text
    for place in (planned.library, *list(planned.library.parents)[:3]):
        assert not place.stat().st_mode & 0o022


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1], fallback_to_soft=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("limit, kept", [(600.0, True), (0.2, False)])
def test_a_build_that_is_under_way_is_waited_for_with_a_word_and_a_limit(planned, monkeypatch, capsys, limit, kept):
    planned, loaded = planned
    planned.library.parent.mkdir(parents=True)
    monkeypatch.setattr(build, "WORDLESS_SECONDS", 0.1)
    monkeypatch.setattr(build, "LOCK_SECONDS", limit)
    words = [sys.executable, "-c", HOLD, str(planned.library.parent / "lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"

        def say(text, **options):
            print(text, **options)
            if kept and "Waiting" in text:
                process.communicate(b"\n")  # it lets go

        monkeypatch.setattr(build, "print", say, raising=False)
        if kept:
            build._obtain(planned)
        else:
            with pytest.warns(RuntimeWarning, match="cannot be kept"):
                build._obtain(planned)
        process.terminate()
    assert "Waiting for another process" in capsys.readouterr().err
    assert loaded == ["ours"]
    assert planned.library.exists() == kept


# Files ---------------------------------------------------------------------------------------------------------------


def swap(folder, victim):
    """What somebody who may write into a folder does: put a link in place of the temporary file."""
    [temporary] = folder.glob(".*.tmp")
    temporary.unlink()
    temporary.symlink_to(victim)


def test_a_link_in_place_of_a_temporary_file_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("private")
    victim.chmod(0o600)
    folder = tmp_path / "shared"
    folder.mkdir()
    with pytest.raises(UserError, match="somebody else has replaced"), atomic_write(folder / "f", "w") as stream:
        swap(folder, victim)
        stream.write("new")
    assert victim.read_text() == "private"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert not list(folder.iterdir())


def test_a_film_is_not_written_through_a_link(tmp_path):
    torch.manual_seed(0)
    victim = tmp_path / "victim"
    victim.write_text("private")
    folder = tmp_path / "shared"
    folder.mkdir()
    renderer = Renderer(calibrated_generator(small_config(octaves=2, num_layers=8)), torch.device("cpu"))
    flight = [Keyframe(1, 0, 0), Keyframe(2, 0, 0)]
    options = {"width": 32, "height": 32, "fps": 4, "seconds": 1}
    swapped = []

    def progress(_):
        if not swapped:
            swap(folder, victim)
            swapped.append(True)

    with pytest.raises(UserError, match="somebody else has replaced"):
        write_film(folder / "f.mp4", renderer, World.parse(3), 1.0, flight, **options, progress=progress)
    assert victim.read_text() == "private"
    assert not list(folder.iterdir())
    write_film(folder / "f.mp4", renderer, World.parse(3), 1.0, flight, **options)
    assert (folder / "f.mp4").stat().st_size > 1000


def test_a_folder_that_is_exchanged_does_not_get_the_file(tmp_path):
    folder, theirs = tmp_path / "shared", tmp_path / "theirs"
    for path in (folder, theirs):
        path.mkdir()
    with atomic_write(folder / "f", "w") as stream:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(theirs)
        stream.write("new")
    assert (tmp_path / "moved" / "f").read_text() == "new"
    assert not list(theirs.iterdir())


def test_folders_made_by_threads_have_the_modes_of_the_umask(tmp_path):
    before, done = os.umask(0o027), threading.Event()

    def write():
        for i in range(200):
            with atomic_write(tmp_path / f"file{i}", "w") as stream:
                stream.write("x")
        done.set()

    thread = threading.Thread(target=write)
    try:
        thread.start()
        made = []
        while not made or not done.is_set():
            made.append(tmp_path / f"folder{len(made)}")
            made[-1].mkdir()
            time.sleep(0.001)  # the other's turn
        thread.join()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o750}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("file*")} == {0o640}

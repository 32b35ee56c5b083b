"""Files are whole or absent; mistakes are sentences."""

import contextlib
import errno
import os
import secrets
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from dnnlib import files
from dnnlib.cli import reports_user_errors
from dnnlib.errors import UserError, cannot_write, in_words, nearest_name, sentence_of
from dnnlib.files import AlreadyThere, atomic_folder, atomic_write, cache_folder, check_writable, sha256


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with atomic_write(path) as stream:
        stream.write(b"new")
        assert not path.exists()
        assert os.path.dirname(stream.name) == str(path.parent)  # libraries ask what it is called
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize(
    "code, said",
    [
        (errno.ENOSPC, "free some space and repeat the command"),
        (errno.EROFS, "give another place"),
        (errno.ENOTDIR, "{file} is a file, not a folder; give another place"),
        (errno.EIO, None),
    ],
)
def test_who_cannot_write_learns_what_to_do(tmp_path, code, said):
    file = tmp_path / "a file"
    file.write_text("")
    path = file / "deep" / "x.png"
    text = str(cannot_write(path, OSError(code, os.strerror(code))))
    if code == errno.ENOTDIR:
        assert text == f"Cannot write {path}: {said.format(file=file)}."
    else:
        assert text == f"Cannot write {path}: {os.strerror(code)}{'; ' + said if said else ''}."
    with pytest.raises(UserError, match="a file is a file, not a folder; give another place"):
        check_writable(path)


@pytest.mark.parametrize(
    "message, said",
    [
        ("Input should be a valid number, unable to parse string as a number", "should be a number"),
        ("Input should be a valid integer, got a number with a fractional part", "should be a whole number"),
        ("Input should be a valid boolean, unable to interpret input", "should be true or false"),
        ("Value error, batch=3 must be even", "batch=3 must be even"),
        ("Input should be greater than 0", "should be greater than 0"),
        ("Input should be a valid date", "should be a valid date"),
    ],
)
def test_what_pydantic_finds_is_said_in_words(message, said):
    assert in_words(message) == said


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_keeps_the_older_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path, "w") as stream:
        stream.write("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_what_has_come_meanwhile_is_not_replaced_unless_that_is_meant(tmp_path, monkeypatch, links):
    def impossible(*_, **__):
        raise PermissionError

    if not links:
        monkeypatch.setattr(os, "link", impossible)
    path = tmp_path / "file"
    with atomic_write(path, "w", replace=False) as stream:
        stream.write("first")
    refused = pytest.raises(AlreadyThere, match="file has come into being meanwhile, and is left")
    with refused, atomic_write(path, "w", replace=False) as stream:
        stream.write("second")
    assert path.read_text() == "first"
    with atomic_write(path, "w") as stream:
        stream.write("third")
    assert path.read_text() == "third"
    assert os.listdir(tmp_path) == ["file"]


def keep(_):
    raise UserError("mine")


def test_a_folder_appears_whole_and_replaces_what_it_may(tmp_path):
    path = tmp_path / "folder"
    for text, may_replace in (("first", None), ("second", lambda old: (old / "name").read_text())):
        with atomic_folder(path, may_replace=may_replace) as folder:
            (folder / "name").write_text(text)
            if may_replace is None:
                path.mkdir()  # an empty one is nothing
        assert (path / "name").read_text() == text
    for may_replace, error in ((None, "has come into being meanwhile"), (keep, "mine")):
        with pytest.raises(UserError, match=error), atomic_folder(path, may_replace=may_replace) as folder:
            (folder / "other").touch()
        assert (path / "name").read_text() == "second"
    with pytest.raises(KeyboardInterrupt), atomic_folder(path, may_replace=bool):
        raise KeyboardInterrupt
    assert (path / "name").read_text() == "second"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "name").touch()
    for target, may_replace in (("empty", None), ("full", lambda old: (old / "name").read_text())):
        (tmp_path / "link").symlink_to(target)
        with atomic_folder(tmp_path / "link", may_replace=may_replace) as folder:
            (folder / "new").touch()
        assert not (tmp_path / "link").is_symlink()
        shutil.rmtree(tmp_path / "link")
    assert (tmp_path / "full" / "name").exists()


def test_a_killed_write_keeps_the_older_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    program = f"""
import time
from dnnlib.files import atomic_write
with atomic_write({str(path)!r}) as stream:
    stream.write(b"half"); stream.flush(); print("writing", flush=True); time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.kill()
    assert process.wait() < 0, "it ended before"
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "name, folder, reason",
    [
        ("new/deep/f.png", None, None),
        ("old", None, None),
        ("old/f.png", None, "old/f.png: "),
        ("old/deep/f.png", None, "old/deep/f.png: "),
        (".", None, "it is a folder; give the name of a file"),
        ("n" * 300, None, ": "),
        ("a\0b", None, ": "),
        (".", "filled", None),
        ("new", "filled", None),
        ("old", "filled", "old: "),
        (".", "replaced", None),
        ("old/new", "replaced", "old/new: "),
    ],
)
def test_whether_a_place_can_be_written_is_known_before_and_leaves_nothing_there(tmp_path, name, folder, reason):
    (tmp_path / "old").write_text("kept")
    with contextlib.nullcontext() if reason is None else pytest.raises(UserError, match=r"^Cannot write ") as refused:
        check_writable(tmp_path / name, folder=folder)
    assert reason is None or reason in str(refused.value)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "kept"


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them; Linux and macOS run it")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask_which_nobody_changes(tmp_path, monkeypatch, umask):
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)  # it is the whole process's: another thread's files would have it too
            with atomic_write(tmp_path / "file") as stream:
                stream.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_temporary_name_that_is_taken_is_left_alone(tmp_path, monkeypatch):
    names = iter(["taken", "free"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(names))
    monkeypatch.setattr(files, "_owner", lambda: "me")
    (tmp_path / ".file.me-taken.tmp").write_text("another's")
    with atomic_write(tmp_path / "file", "w") as stream:
        stream.write("mine")
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / ".file.me-taken.tmp").read_text() == "another's"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full (Linux)")
def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(files._Place, "create", lambda *_: ("t", os.open("/dev/full", os.O_RDWR)))
    with pytest.raises(UserError, match="No space left on device"), atomic_write(tmp_path / "file") as stream:
        stream.write(b"x" * 100_000)
    assert not (tmp_path / "file").exists()


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f").startswith("ba7816bf 8f01cfea".replace(" ", ""))


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MULTISCALE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "multiscale"


def test_the_cache_folder_may_be_given_from_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MULTISCALE_CACHE", "~/kept")  # as a line of an environment file, which no shell reads
    assert cache_folder() == tmp_path / "kept"


def test_hints_name_the_nearest_or_all():
    assert nearest_name("bacth", ["batch", "seed"]) == ", did you mean 'batch'?"
    assert nearest_name("xyz", ["batch", "seed"]) == "; allowed: batch, seed."


def test_sentences_come_out_of_tracebacks():
    assert sentence_of("Traceback\n  File\ndnnlib.errors.UserError: It is so.\n") == "It is so."
    assert sentence_of("It is so.") == "It is so."


@pytest.mark.parametrize(
    "error, code, text", [(UserError("No."), 2, "Error: No.\n"), (KeyboardInterrupt(), 130, "Interrupted.\n")]
)
def test_commands_report_without_a_traceback(error, code, text):
    @click.command()
    @reports_user_errors
    def command():
        raise error

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.stderr) == (code, text)


def test_other_errors_keep_their_traceback():
    @reports_user_errors
    def command():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        command()

"""The history of a run: every start is a line, whatever cut off the one before."""

import subprocess
from pathlib import Path

import pytest

from dnnlib.errors import UserError
from multiscale.runs import history
from multiscale.runs.history import HISTORY, git_commit, read_starts, write_start


def start(folder: Path, kimg: float, **changed: list[float]) -> None:
    write_start(folder, kimg=kimg, changed=changed, begins_with=None, facts={"program": "1.2.3"})


def test_starts_are_appended_also_behind_a_line_that_was_cut_off(tmp_path):
    assert read_starts(tmp_path) == []
    start(tmp_path, 0)
    path = tmp_path / HISTORY
    first = path.read_bytes()
    path.write_bytes(first + first[:30])
    start(tmp_path, 2, r1_gamma=[1, 2])
    assert path.read_bytes().startswith(first + first[:30] + b"\n")
    starts = read_starts(tmp_path)
    assert [(line["kimg"], line["changed"], line["program"]) for line in starts] == [
        (0, {}, "1.2.3"),
        (2, {"r1_gamma": [1, 2]}, "1.2.3"),
    ]


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"time": 1, "changed": {}, "kimg": 0}', '{"time": "", "changed": {}, "kimg": "a"}', "\0"]
)
def test_damaged_lines_are_left_out(line, tmp_path):
    (tmp_path / HISTORY).write_text(line + "\n")
    start(tmp_path, 3)
    assert [line["kimg"] for line in read_starts(tmp_path)] == [3]


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / HISTORY).mkdir()
    with pytest.raises(UserError, match=r"^Cannot write .*history.jsonl: Is a directory\.$"):
        start(tmp_path, 0)


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "ROOT", tmp_path)
    assert git_commit() is None

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init")
    assert git_commit() is None  # nothing is committed
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    git("tag", "-a", "v1", "-m", "v1")
    head = git("rev-parse", "HEAD").strip()
    assert git_commit() == head
    (tmp_path / "a").write_text("22")
    assert git_commit() == f"{head}-dirty"

"""The cache on disk: bounded, shared by processes, never wrong and never in the way."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dnnlib.cache import DiskCache


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def size_of(folder):
    return sum(path.stat().st_size for path in files_of(folder))


def test_what_was_put_is_got_by_another_cache_too(tmp_path):
    DiskCache(tmp_path, 10_000).put("a", b"apple")
    cache = DiskCache(tmp_path, 10_000)
    assert cache.get("a") == b"apple"
    assert cache.get("b") is None
    cache.put("a", b"another")
    assert cache.get("a") == b"another"


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "a\0b", "x" * 10_000, "..", "", "ä/ö"])
def test_keys_are_never_paths(tmp_path, key):
    folder = tmp_path / "cache"
    cache = DiskCache(folder, 10_000)
    cache.put(key, b"value")
    assert cache.get(key) == b"value"
    assert [path.parent for path in tmp_path.iterdir()] == [tmp_path]
    assert len(files_of(folder)) == 1
    assert len(files_of(folder)[0].name) == 64


def test_it_stays_within_its_bound_and_keeps_what_was_used_last(tmp_path):
    cache = DiskCache(tmp_path, 40_000)
    cache.put("used", bytes(1000))
    for i in range(100):
        cache.put(str(i), bytes(1000))
        assert size_of(tmp_path) <= 40_000
        for path in files_of(tmp_path):  # a minute goes by
            os.utime(path, (path.stat().st_mtime - 60,) * 2)
        assert cache.get("used") == bytes(1000)
    assert cache.get("99") is not None
    assert cache.get("0") is None


def test_what_is_too_large_or_not_wanted_is_not_kept(tmp_path):
    DiskCache(tmp_path, 16_000).put("a", bytes(2000))
    DiskCache(tmp_path, 0).put("b", b"")
    assert not files_of(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"short", bytes(100)])
def test_damaged_entries_are_not_there(tmp_path, damage):
    cache = DiskCache(tmp_path, 10_000)
    cache.put("a", b"apple")
    [path] = files_of(tmp_path)
    path.write_bytes(damage)
    assert cache.get("a") is None
    assert not path.exists()


def test_strangers_files_stay_and_dead_writers_files_go(tmp_path):
    cache = DiskCache(tmp_path, 10_000)
    cache.put("a", bytes(500))
    [path] = files_of(tmp_path)
    stranger, dead, writing = (
        path.parent / name for name in ("notes.txt", f".{path.name}.abc.tmp", f".{path.name}.def.tmp")
    )
    for file in (stranger, dead, writing):
        file.write_bytes(bytes(50_000))
    for file in (stranger, dead):
        os.utime(file, (0, 0))
    for i in range(40):
        cache.put(str(i), bytes(500))
    assert stranger.exists()
    assert writing.exists()
    assert not dead.exists()


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "cache", 10_000)
    with caplog.at_level(logging.WARNING):
        for i in range(5):
            cache.put(str(i), b"value")
            assert cache.get(str(i)) is None
    assert len(caplog.records) == 1
    assert "cannot be used" in caplog.text


def test_a_full_disk_costs_one_warning(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    cache = DiskCache(tmp_path, 10_000)
    cache.put("before", b"value")
    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        cache.put("a", b"value")
        cache.put("b", b"value")
    assert cache.get("a") is None
    assert cache.get("before") == b"value"
    assert len(caplog.records) == 1
    assert len(files_of(tmp_path)) == 1, "no temporary files are left"


def test_threads_may_share_it(tmp_path):
    cache = DiskCache(tmp_path, 50_000)

    def work(i):
        cache.put(f"{i % 20}", bytes([i % 20]) * 900)
        return cache.get(f"{i % 20}")

    with ThreadPoolExecutor(8) as pool:
        for i, value in enumerate(pool.map(work, range(400))):
            assert value in (None, bytes([i % 20]) * 900)
    assert size_of(tmp_path) <= 50_000


PROGRAM = """
import sys
from dnnlib.cache import DiskCache
cache = DiskCache(sys.argv[1], 100_000)
for i in range(300):
    key = f"{i % 60} {'' if i % 2 else sys.argv[2]}"
    value = cache.get(key)
    assert value in (None, key.encode() * 200)
    cache.put(key, key.encode() * 200)
"""


def test_processes_may_share_it(tmp_path):
    root = Path(__file__).parent.parent.parent
    several = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), name], cwd=root) for name in "ab"]
    assert [process.wait(600) for process in several] == [0, 0]
    assert size_of(tmp_path) <= 120_000

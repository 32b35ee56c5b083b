"""Our reader of ZIP directories agrees with ``zipfile`` on what it writes, and refuses what is damaged in a sentence."""

import io
import os
import struct
import threading
import zipfile

import numpy as np
import pytest

from multiscale.data import archive
from multiscale.data.archive import ZipSource, read_directory

EXTRAS = [b"", struct.pack("<HHQ", 0x7075, 8, 1), struct.pack("<HHB", 0x5455, 1, 7) * 3, b"\x09"]


def random_archive(rng: np.random.Generator) -> bytes:
    """Stored, deflated, empty and ZIP64 members, folders, comments, extra fields, names in and out of ASCII, a prefix."""
    stream = io.BytesIO()
    stream.write(b"#!stub" * int(rng.integers(0, 3)))
    with zipfile.ZipFile(stream, "a" if stream.tell() else "w") as zipped:
        for i in range(int(rng.integers(0, 25))):
            odd = str(rng.choice(["", "", "", "ü", "PK\x01\x02"]))
            name = f"{i % 3}/{odd}{i}.png"
            entry = zipfile.ZipInfo(name + "/" * int(rng.random() < 0.1))
            entry.compress_type = int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            entry.comment = b"c" * int(rng.integers(0, 4))
            entry.extra = EXTRAS[rng.integers(len(EXTRAS))] * int(rng.integers(0, 2))
            data = b"" if entry.is_dir() else rng.bytes(int(rng.integers(0, 700))) + bytes(int(rng.integers(0, 300)))
            entry.file_size = len(data)
            with zipped.open(entry, "w", force_zip64=bool(rng.random() < 0.3)) as member:
                member.write(data)
        zipped.comment = rng.bytes(int(rng.integers(0, 40))) if rng.random() < 0.5 else b""
    return stream.getvalue()


@pytest.mark.parametrize("zip64", [False, True])
def test_random_archives_read_as_zipfile_reads_them(tmp_path, monkeypatch, zip64):
    if zip64:  # sizes, offsets and the end record go into ZIP64 fields
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 200)
    rng = np.random.default_rng(int(zip64))
    path, seen64 = tmp_path / "random.zip", 0
    for _ in range(60):
        data = random_archive(rng)
        path.write_bytes(data)
        seen64 += b"PK\x06\x06" in data
        source = ZipSource(path)
        with zipfile.ZipFile(path) as zipped:
            entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
            assert source.files == [entry.filename for entry in entries]
            contents = [zipped.read(entry) for entry in entries]
        chosen = [entries[i].filename for i in rng.permutation(len(entries))[: rng.integers(len(entries) + 1)]]
        for name in chosen:
            assert source.read_name(name) == contents[source.files.index(name)]
        wanted = [contents[source.files.index(name)] for name in chosen]
        source.keep(chosen)
        for i, content in enumerate(wanted):
            assert source.read(i) == content
            assert source.ends(i, 33, 12) == (content[:33], content[-12:])
    assert (seen64 > 30) is zip64


def test_more_members_than_16_bits_count(tmp_path):
    count = 0x10000 + 5
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as zipped:
        for i in range(count):
            zipped.writestr(zipfile.ZipInfo(str(i)), b"")
    assert len(ZipSource(tmp_path / "many.zip").files) == count


def headers_beyond_4_gib(count: int, first: int) -> bytes:
    """A directory whose members lie beyond 4 GiB, a time stamp before each ZIP64 field, as Info-ZIP writes it."""
    parts = []
    for i in range(count):
        extra = struct.pack("<HHB", 0x5455, 1, 0) + struct.pack("<HHQ", 1, 8, first + 40 * i)
        name = b"%04d.png" % i
        fixed = (0x031E, 45, 0, 0, 0, 0, 0, 5, 5, len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF)
        parts.append(b"PK\x01\x02" + struct.pack("<6H3I5H2I", *fixed) + name + extra)
    return b"".join(parts)


def test_offsets_beyond_4_gib(tmp_path):
    """In a sparse file, which takes no room on disk."""
    first, count = 5 << 30, 100
    directory = headers_beyond_4_gib(count, first)
    start = first + 40 * count
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with open(tmp_path / "sparse.zip", "wb") as stream:
        stream.seek(start)
        stream.write(directory + end64 + locator + end)
    with open(tmp_path / "sparse.zip", "rb") as stream:
        names, members = read_directory(stream)
    with zipfile.ZipFile(tmp_path / "sparse.zip") as zipped:
        assert names == zipped.namelist()
        assert members["offset"].tolist() == [entry.header_offset for entry in zipped.infolist()]


def small_zip(**entry_fields) -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        zipped.writestr("a.png", b"x" * 50)
        zipped.writestr("b.png", b"y" * 50)
    data = bytearray(stream.getvalue())
    place = data.index(b"PK\x01\x02")
    for field, value in entry_fields.items():
        dtype, offset = archive._HEADER.fields[field][:2]
        data[place + offset : place + offset + dtype.itemsize] = value.to_bytes(dtype.itemsize, "little")
    return data


def cut(data: bytearray, part: slice) -> bytearray:
    del data[part]
    return data


def renamed(data: bytearray) -> bytearray:
    return data.replace(b"b.png", b"a.png")


DAMAGED = {
    "cut at the end": (cut(small_zip(), slice(-10, None)), "end is missing"),
    "nothing but text": (bytearray(b"hello" * 99), "end is missing"),
    "cut at the front": (cut(small_zip(), slice(0, 20)), "cut off"),
    "cut in the directory": (cut(small_zip(), slice(-60, -30)), "cut off|damaged"),
    "one part of many": (cut(small_zip(), slice(-18, -16)) + b"\0\0", "end is missing|split"),
    "wrong signature": (small_zip(signature=0x12345678), "directory is damaged"),
    "name longer than the directory": (small_zip(name_length=60000), "directory is damaged"),
    "encrypted": (small_zip(flags=1), r"a\.png is encrypted"),
    "LZMA": (small_zip(method=14), r"a\.png is neither stored nor deflated"),
    "offset out of range": (small_zip(offset=100000), r"a\.png is said to lie beyond"),
    "size out of range": (small_zip(stored=100000, size=100000), r"a\.png is said to lie beyond"),
    "two sizes": (small_zip(size=51), "two different sizes"),
    "ZIP64 field missing": (small_zip(offset=0xFFFFFFFF), "ZIP64 field"),
    "named twice": (renamed(small_zip()), r"a\.png twice"),
    "name that is not UTF-8": (small_zip(flags=1 << 11).replace(b"a.png", b"\xff.png"), "not utf-8"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_to_the_directory_is_refused(case):
    data, message = DAMAGED[case]
    with pytest.raises(zipfile.BadZipFile, match=message):
        read_directory(io.BytesIO(data))


def test_random_damage_is_refused_or_read_but_never_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.zip"
    refused = wrong = 0
    for _ in range(600):
        data = bytearray(random_archive(rng))
        for _ in range(int(rng.integers(1, 4))):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data[: len(data) - int(rng.random() < 0.1)])
        try:
            source = ZipSource(path)
        except zipfile.BadZipFile:
            refused += 1
            continue
        source.keep(source.files)
        for i in range(len(source._members)):
            try:
                source.read(i)
            except ValueError:
                wrong += 1
    assert refused > 50
    assert wrong > 50


def test_a_wrong_checksum_is_damage(tmp_path):
    (tmp_path / "a.zip").write_bytes(small_zip().replace(b"yyy", b"yzy", 1))
    source = ZipSource(tmp_path / "a.zip")
    source.keep(source.files)
    assert source.read(0) == b"x" * 50
    with pytest.raises(ValueError, match="checksum"):
        source.read(1)


def test_a_file_that_changed_since_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(small_zip())
    source = ZipSource(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(small_zip() + b" ")
    with pytest.raises(OSError, match="has changed"):
        source.read_name("a.png")


def test_threads_share_one_handle(tmp_path):
    contents = [os.urandom(3000) for _ in range(40)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for i, content in enumerate(contents):
            zipped.writestr(f"{i:02d}", content)
    source = ZipSource(tmp_path / "a.zip")
    source.keep(source.files)
    wrong: list[int] = []

    def read_all(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 40, 300).tolist():
            try:
                if source.read(i) != contents[i]:
                    wrong.append(i)
            except Exception:
                wrong.append(i)

    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

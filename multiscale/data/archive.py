"""A ZIP read at random by many processes and threads: its directory as compact arrays, its members by ``os.pread``.

Python's ``zipfile`` makes an object of some 500 bytes for every member, in 15 microseconds each; here a member costs 30
bytes and its name, and 1.5 microseconds. Written after PKWARE's APPNOTE.TXT, sections 4.3 (records) and 4.5.3 (ZIP64).
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from multiscale.data.source import LABELS_FILE, FilesSource

_END = struct.Struct("<4sHHHHIIH")
"""End record: signature, this disk, the directory's, members here, members, size and offset of the directory, length of the
comment that follows."""
_END64 = struct.Struct("<4s12xIIQQQQ")
"""Its ZIP64 twin: signature, this disk, the directory's, members here, members, size and offset of the directory."""
_LOCATOR64 = struct.Struct("<4sIQI")
"""Stands before the end record of a ZIP64: signature, disk, offset of the twin, disks."""
_LOCAL = struct.Struct("<4s22xHH")
"""Header before a member's bytes: signature, length of its name, length of its extra field; the two follow."""
_LOCAL_SLACK = 256
"""Bytes read beyond a member, so that the name and extra field in front of it nearly always come along."""

_LOCAL_SIGNATURE = int.from_bytes(b"PK\x03\x04", "little")
_BLOCK = 4096

_HEADER = np.dtype(
    [
        ("signature", "<u4"),
        ("versions", "<u4"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u4"),
        ("crc", "<u4"),
        ("stored", "<u4"),
        ("size", "<u4"),
        ("name_length", "<u2"),
        ("extra_length", "<u2"),
        ("comment_length", "<u2"),
        ("disk", "<u2"),
        ("attributes", "V6"),
        ("offset", "<u4"),
    ]
)
"""A member in the directory, 46 bytes; its name, extra field and comment follow."""

MEMBER = np.dtype([("offset", "<i8"), ("stored", "<i8"), ("size", "<i8"), ("crc", "<u4"), ("method", "<u2")])
"""What is kept of a member: where its local header begins, bytes in the ZIP, bytes unpacked, CRC-32, ZIP method."""

LARGEST = 1 << 28
"""Bytes that a file in a ZIP may have unpacked, until more is known of the set."""

LABELS_BYTES, LABEL_BYTES = 1 << 20, 4096
"""Of the file of labels, at most: in all, and for each other file there."""

_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_UTF8 = 1 << 11
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


class _End(NamedTuple):
    """What the end of a ZIP says: where its directory lies, and how many bytes stand in front of the ZIP."""

    start: int
    size: int
    members: int
    is_zip64: bool
    prefix: int


def read_directory(stream: IO[bytes]) -> tuple[list[str], np.ndarray]:
    """Read the central directory of a ZIP, with or without ZIP64, comments, extra fields and bytes in front of it.

    Args:
        stream: The file, opened for binary reading, seekable.

    Returns:
        The names of the members, unique, folders left out, in the order of the directory, and ``MEMBER`` [n].

    Raises:
        zipfile.BadZipFile: truncated or no ZIP; split; a record damaged or out of range; a name that stands twice; a member
            that is encrypted, or packed by a method other than stored and deflated.
    """
    end = _find_end(stream)
    stream.seek(end.start)
    buffer = stream.read(end.size)
    places = _walk(buffer)
    wraps = 1 << 64 if end.is_zip64 else 1 << 16  # tools without ZIP64 count modulo 2^16
    if (len(places) - end.members) % wraps:
        raise zipfile.BadZipFile(f"its end counts {end.members} files, its directory holds {len(places)}")
    headers = _gather(buffer, places, _HEADER)
    names = _names(buffer, places, headers)
    members = _members(buffer, places, headers)
    kept = np.array([not name.endswith("/") for name in names], dtype=bool)
    if not kept.all():
        names = [name for name in names if not name.endswith("/")]
        headers, members = headers[kept], members[kept]
    _check(names, headers, members, room=end.start - end.prefix)
    members["offset"] += end.prefix
    return names, members


def _find_end(stream: IO[bytes]) -> _End:
    """Find the end record, behind which only a comment may stand, and its ZIP64 twin."""
    length = stream.seek(0, os.SEEK_END)
    first = max(0, length - _END.size - _FULL16)
    stream.seek(first)
    tail = stream.read()
    place = tail.rfind(b"PK\x05\x06")
    while place >= 0:
        if place + _END.size <= len(tail):
            _, *disks, here, count, size, offset, comment = _END.unpack_from(tail, place)
            if place + _END.size + comment == len(tail):
                break
        place = tail.rfind(b"PK\x05\x06", 0, place)
    else:
        raise zipfile.BadZipFile("its end is missing; it may be truncated or another kind of file")
    stop, is_zip64 = first + place, False
    locator = _read_at(stream, stop - _LOCATOR64.size, _LOCATOR64)
    if locator is not None and locator[0] == b"PK\x06\x07":
        is_zip64 = True
        behind = stop - _LOCATOR64.size
        for stop in (locator[2], behind - _END64.size):  # the second, where bytes were put in front of the ZIP
            record = _read_at(stream, stop, _END64)
            if record is not None and record[0] == b"PK\x06\x06" and stop + _END64.size <= behind:
                break
        else:
            raise zipfile.BadZipFile("its ZIP64 end record is missing; it may be damaged")
        _, *disks, here, count, size, offset = record
    if any(disks) or here != count:
        raise zipfile.BadZipFile("it is one part of a split ZIP")
    start = stop - size
    if start < offset:
        raise zipfile.BadZipFile("its directory is cut off or out of place")
    return _End(start, size, count, is_zip64, start - offset)


def _read_at(stream: IO[bytes], offset: int, record: struct.Struct) -> tuple[Any, ...] | None:
    """A record at an offset, or None where the file has none."""
    if not 0 <= offset < 1 << 63:
        return None
    stream.seek(offset)
    data = stream.read(record.size)
    return record.unpack(data) if len(data) == record.size else None


def _walk(buffer: bytes) -> np.ndarray:
    """Where each header of a directory begins, int64 [n]: each says only how long it is itself."""
    places, place, stop = [], 0, len(buffer)
    unpack = struct.Struct("<4s24xHHH").unpack_from
    while place + _HEADER.itemsize <= stop:
        places.append(place)
        signature, name, extra, comment = unpack(buffer, place)
        if signature != b"PK\x01\x02":
            break
        place += 46 + name + extra + comment
    if place != stop:
        raise zipfile.BadZipFile("its directory is damaged")
    return np.array(places, dtype=np.int64)


def _gather(buffer: bytes, places: np.ndarray, dtype: np.dtype[Any] | str) -> np.ndarray:
    """Records [n] that begin at ``places`` [n], aligned or not; they must lie inside the buffer."""
    dtype = np.dtype(dtype)
    if not len(places):
        return np.zeros(0, dtype)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(buffer, np.uint8), dtype.itemsize)
    return windows[places].view(dtype)[:, 0]


def _names(buffer: bytes, places: np.ndarray, headers: np.ndarray) -> list[str]:
    """Names as ``zipfile`` reads them: UTF-8 if a flag says so, code page 437 if not."""
    starts = places + _HEADER.itemsize
    stops = starts + headers["name_length"]
    text = buffer.decode("latin-1")
    names = [text[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    for i, name in enumerate(names):
        if not name.isascii():
            codec = "utf-8" if headers["flags"][i] & _UTF8 else "cp437"
            try:
                names[i] = name.encode("latin-1").decode(codec)
            except UnicodeDecodeError as error:
                raise zipfile.BadZipFile(f"the name of file {i + 1} in it is not {codec}") from error
    return names


def _members(buffer: bytes, places: np.ndarray, headers: np.ndarray) -> np.ndarray:
    """``MEMBER`` [n]; sizes and offsets that do not fit into 32 bits come from the ZIP64 extra fields."""
    members = np.empty(len(headers), MEMBER)
    for field in ("offset", "stored", "size", "crc", "method"):
        members[field] = headers[field]
    wide = [(field, headers[field] == _FULL32) for field in ("size", "stored", "offset")]  # in their order in the field
    rows = np.flatnonzero(np.logical_or.reduce([full for _, full in wide]))
    if not len(rows):
        return members
    cursor = places[rows] + _HEADER.itemsize + headers["name_length"][rows]
    stop = cursor + headers["extra_length"][rows]
    cursor, stop = _find_extra(buffer, cursor, stop)
    for field, full in wide:
        part = full[rows]
        if (cursor[part] + 8 > stop[part]).any():
            raise zipfile.BadZipFile("a ZIP64 field in its directory is missing or damaged")
        values = _gather(buffer, cursor[part], "<u8")
        if (values >= 1 << 62).any():
            raise zipfile.BadZipFile("a ZIP64 field in its directory is out of range")
        members[field][rows[part]] = values.astype(np.int64)
        cursor[part] += 8
    return members


def _find_extra(buffer: bytes, cursor: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of the contents of the ZIP64 block (id 1) among the extra blocks between ``cursor`` and ``stop``, [n] each.

    Where there is none, both lie at ``stop``.
    """
    cursor, end = cursor.copy(), stop.copy()
    open_rows = np.arange(len(cursor))
    while len(open_rows):
        inside = cursor[open_rows] + 4 <= stop[open_rows]
        cursor[open_rows[~inside]] = stop[open_rows[~inside]]
        open_rows = open_rows[inside]
        blocks = _gather(buffer, cursor[open_rows], np.dtype([("id", "<u2"), ("length", "<u2")]))
        cursor[open_rows] += 4
        behind = np.minimum(cursor[open_rows] + blocks["length"], stop[open_rows])
        found = blocks["id"] == 1
        end[open_rows[found]] = behind[found]
        open_rows, behind = open_rows[~found], behind[~found]
        cursor[open_rows] = behind
    return cursor, end


def _check(names: list[str], headers: np.ndarray, members: np.ndarray, *, room: int) -> None:
    """Refuse members that could not be read; ``room``: bytes between the begin of the ZIP and its directory."""
    problems = {
        "encrypted; pack it again without a password": headers["flags"] & _ENCRYPTED != 0,
        "neither stored nor deflated; pack it again": (members["method"] != 0) & (members["method"] != 8),
        "stored with two different sizes": (members["method"] == 0) & (members["stored"] != members["size"]),
        "said to lie beyond its end": members["offset"] + members["stored"] + _LOCAL.size > room,
    }
    for problem, bad in problems.items():
        rows = np.flatnonzero(bad)
        if len(rows):
            more = f" and {len(rows) - 1} more are" if len(rows) > 1 else " is"
            raise zipfile.BadZipFile(f"{names[rows[0]]}{more} {problem}")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise zipfile.BadZipFile(f"it holds {twice} twice")


class ZipSource(FilesSource):
    """Patches inside a ZIP: 30 bytes of index a patch, and one file handle that threads and forked processes may share.

    Pickled, it leaves the handle behind and opens the file anew, which must be the same still.

    Attributes:
        path: The ZIP.
        files: Names of all files in it, until ``keep``.
        largest: Bytes that a file may have unpacked; a few bytes can claim any number.
    """

    def __init__(self, path: Path) -> None:
        """Raises zipfile.BadZipFile (see ``read_directory``) or OSError."""
        super().__init__(path)
        self.largest = LARGEST
        self._handle: list[IO[bytes]] = []
        with open(path, "rb") as stream:
            self._identity = _identity(stream)
            self.files, self._members = read_directory(stream)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": []}

    def keep(self, names: list[str]) -> None:
        """Forget all files but those named, which from now on go by their places in ``names``."""
        if self.files[: len(names)] == names:
            self._members = self._members[: len(names)].copy()
        else:
            places = {name: i for i, name in enumerate(self.files)}
            rows = np.fromiter((places[name] for name in names), dtype=np.int64, count=len(names))
            self._members = self._members[rows]
        self.files = []

    def read_name(self, name: str) -> bytes:
        """A file by name, before ``keep``."""
        return self.read(self.files.index(name))

    def read_labels(self) -> bytes:
        """The file of labels, before ``keep``, of a size that goes with the number of files."""
        self.largest = LABELS_BYTES + LABEL_BYTES * len(self.files)
        text = self.read_name(LABELS_FILE)
        self.largest = LARGEST
        return text

    def read(self, index: int) -> bytes:
        """A file, whole and with the right CRC, or ValueError ("is damaged ...") or OSError."""
        offset, stored, size, crc, method = self._members[index].item()
        if size > self.largest:
            raise ValueError(f"is damaged inside the ZIP (it claims {size} bytes, of at most {self.largest})")
        data = self._bytes(offset, _LOCAL.size + stored + _LOCAL_SLACK)
        start = _data_start(data)
        stop = start + stored
        data = data[start:stop] if stop <= len(data) else self._bytes(offset + start, stored)
        if method == zipfile.ZIP_DEFLATED:
            data = _inflate(data, size)
        if len(data) != size or zlib.crc32(data) != crc:
            raise ValueError("is damaged inside the ZIP (its checksum is wrong)")
        return data

    def checksums(self, count: int) -> np.ndarray:
        """As :meth:`PatchSource.checksums`, out of the directory, which ``read`` holds each file to."""
        return self._members["crc"][:count].copy()

    def ends(self, index: int, head: int, tail: int) -> tuple[bytes, bytes]:
        """The first and last bytes of a file, as many as asked for, without reading what lies between."""
        offset, stored, _, _, method = self._members[index].item()
        if method != zipfile.ZIP_STORED:
            data = self.read(index)
            return data[:head], data[-tail:]
        data = self._bytes(offset, _LOCAL.size + _LOCAL_SLACK + head)
        start = _data_start(data)
        first, last = min(head, stored), min(tail, stored)
        begin = data[start : start + first] if start + first <= len(data) else self._bytes(offset + start, first)
        return begin, self._bytes(offset + start + stored - last, last)

    def unlike(self, count: int, begin: bytes, end: bytes) -> list[int]:
        """Which files cannot be seen, without unpacking them, to begin and end with these bytes; 2 microseconds each."""
        suspects: list[int] = []
        for low in range(0, count, _BLOCK):
            block = self._members[low : low + _BLOCK]
            span = _LOCAL.size + _LOCAL_SLACK + len(begin)
            data = b"".join([self._bytes(offset, span).ljust(span, b"\0") for offset in block["offset"].tolist()])
            rows = np.arange(len(block)) * span
            local = _gather(data, rows, np.dtype([("signature", "<u4"), ("rest", "V22"), ("lengths", "<u2", 2)]))
            starts = _LOCAL.size + local["lengths"].sum(axis=1, dtype=np.int64)
            good = (block["method"] == zipfile.ZIP_STORED) & (block["stored"] >= len(begin) + len(end))
            good &= (local["signature"] == _LOCAL_SIGNATURE) & (starts + len(begin) <= span)
            good &= _gather(data, rows + np.where(good, starts, 0), f"V{len(begin)}") == np.void(begin)
            tails = np.where(good, block["offset"] + starts + block["stored"] - len(end), -1).tolist()
            suspects += [low + i for i, at in enumerate(tails) if at < 0 or self._bytes(at, len(end)) != end]
        return suspects

    def _bytes(self, offset: int, size: int) -> bytes:
        """``size`` bytes, fewer at the end of the file; ``pread`` has no position that others could move."""
        if not hasattr(os, "pread"):  # Windows: no fork, and a handle for each read
            with self._open() as stream:
                stream.seek(offset)
                return stream.read(size)
        if not self._handle:
            self._handle.append(self._open())  # of two threads that come at once, the second's handle lies idle
        return os.pread(self._handle[0].fileno(), size, offset)

    def _open(self) -> IO[bytes]:
        stream = open(self.path, "rb", buffering=0)  # noqa: SIM115 - kept open with the source
        if _identity(stream) != self._identity:
            stream.close()
            raise OSError("is in a ZIP that has changed since it was opened")
        return stream


def _identity(stream: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def _data_start(data: bytes) -> int:
    """Length of the local header at the beginning of ``data``, name and extra field included."""
    if len(data) < _LOCAL.size or data[:4] != b"PK\x03\x04":
        raise ValueError("is damaged inside the ZIP (its header is missing)")
    _, name, extra = _LOCAL.unpack_from(data)
    return int(_LOCAL.size + name + extra)


def _inflate(data: bytes, size: int) -> bytes:
    """At most ``size`` + 1 bytes, so that a wrong size shows and a bomb does not go off."""
    try:
        return zlib.decompressobj(wbits=-15).decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"is damaged inside the ZIP ({error})") from error

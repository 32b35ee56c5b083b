"""The container of a patch set: a ZIP (stored, not deflated) or a folder of PNG files and one ``dataset.json``.

Reading keeps only where each file lies; writing is whole or nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.files import atomic_write

LABELS_FILE = "dataset.json"
MAX_LABEL = 32.0
"""Labels are log2 of a zoom; a label above this is a zoom factor written by mistake."""

HEADER_BYTES = 33
"""Of a PNG file: signature and first chunk."""
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


class PatchWriter:
    """Write a container that is whole or absent: a ZIP if ``dest`` ends in ``.zip``, a folder otherwise.

    Use as a context manager; the container appears under its name only when the block ends without an exception. Equal
    patches and labels give equal bytes (the ZIP's time stamps are fixed, and its files are stored, not deflated).
    """

    def __init__(self, dest: str | Path, *, force: bool = False) -> None:
        """Args:
            dest: The ZIP or folder to make.
            force: Replace an existing ZIP or patch folder.

        Raises:
            UserError: ``dest`` exists and ``force`` is not given, or it is something other than a patch set.
        """
        self.dest = Path(dest)
        self.is_zip = self.dest.suffix.lower() == ".zip"
        self.force = force
        self._labels: list[tuple[str, float]] = []
        check_dest(self.dest, force=force)

    def __enter__(self) -> PatchWriter:
        self._stack = contextlib.ExitStack()
        self._write = self._stack.enter_context(_zip_sink(self.dest) if self.is_zip else _folder_sink(self.dest))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            if kind is None:
                self._write(LABELS_FILE, json.dumps({"labels": self._labels}).encode())
        except BaseException as own:
            self._stack.__exit__(type(own), own, own.__traceback__)
            raise
        return self._stack.__exit__(kind, error, trace)

    def add(self, png: bytes, label: float) -> str:
        """Append one patch.

        Args:
            png: An encoded PNG file (see ``encode_png``).
            label: s, log2 of the zoom, 0 <= s <= 32.

        Returns:
            The name of the patch inside the container.
        """
        if not 0 <= label <= MAX_LABEL:
            raise ValueError(f"label {label} is outside 0 ... {MAX_LABEL}")
        index = len(self._labels)
        name = f"{index // 1000:05d}/img{index:08d}.png"
        self._write(name, png)
        self._labels.append((name, float(label)))
        return name


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 1] (grey) or [H, W, 3] (RGB) as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(stream, "PNG")
    return stream.getvalue()


def check_dest(dest: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a ``dest`` that exists (without ``force``) or is not ours to replace.

    Raises:
        UserError: says what stands there and what to do.
    """
    try:
        if not dest.exists():
            return
    except OSError as error:
        raise UserError(f"Cannot write {dest}: {error.strerror or error}.") from error
    if dest.suffix.lower() == ".zip":
        if dest.is_dir():
            raise UserError(f"{dest} is a folder; give a file name for the ZIP.")
    elif not dest.is_dir():
        raise UserError(f"{dest} is a file; give a folder, or a name that ends in .zip.")
    elif not any(dest.iterdir()):
        return
    elif not (dest / LABELS_FILE).is_file():
        raise UserError(f"Folder {dest} is not empty and holds no patch set; give another --dest.")
    if not force:
        raise UserError(f"{dest} exists; pass --force to replace it, or give another --dest.")


@contextlib.contextmanager
def _zip_sink(dest: Path) -> Any:
    with atomic_write(dest) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)

        yield write


@contextlib.contextmanager
def _folder_sink(dest: Path) -> Any:
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".tmp", dir=dest.parent))
        try:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()

            def write(name: str, data: bytes) -> None:
                file = new / name
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(data)

            yield write
            if dest.exists():
                os.replace(dest, old)
            os.replace(new, dest)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"Cannot write {dest}: {error.strerror or error}.") from error


class FolderSource:
    """Patches as files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {
            Path(folder, file).relative_to(path).as_posix() for folder, _, files in os.walk(path) for file in files
        }
        self.names: list[str] = []

    def keep(self, names: list[str]) -> None:
        self.names, self.files = names, set()

    def read_name(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read(self, index: int, verify: bool = False) -> bytes:
        return self.read_name(self.names[index])

    def ends(self, index: int) -> tuple[bytes, bytes]:
        with open(self.path / self.names[index], "rb") as stream:
            head = stream.read(HEADER_BYTES)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - len(PNG_END)))
            return head, stream.read()


class ZipSource:
    """Patches inside a ZIP: 40 bytes of index a patch, and one file handle a process, opened when first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: IO[bytes] | None = None
        self._pid = -1
        with zipfile.ZipFile(path) as archive:
            self._entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        self.files = set(self._entries)
        self._index = np.zeros((0, 5), dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_pid": -1}

    def keep(self, names: list[str]) -> None:
        rows = [self._row(self._entries[name]) for name in names]
        self._index = np.array(rows, dtype=np.int64).reshape(-1, 5)
        self._entries, self.files = {}, set()

    def read_name(self, name: str) -> bytes:
        return self._read(self._row(self._entries[name]), verify=True)

    def read(self, index: int, verify: bool = False) -> bytes:
        return self._read(self._index[index].tolist(), verify)

    def _row(self, entry: zipfile.ZipInfo) -> list[int]:
        return [entry.header_offset, entry.compress_size, entry.file_size, entry.compress_type, entry.CRC]

    def _read(self, row: list[int], verify: bool) -> bytes:
        start, stored, size, method, crc = row
        data = self._bytes(self._data_offset(start), stored)
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompress(data, wbits=-15)
        elif method != zipfile.ZIP_STORED:
            raise ValueError(f"is packed with ZIP method {method} (allowed: stored, deflated)")
        if len(data) != size or (verify and zlib.crc32(data) != crc):
            raise ValueError("is damaged inside the ZIP")
        return data

    def ends(self, index: int) -> tuple[bytes, bytes]:
        start, stored, _, method, _ = (int(value) for value in self._index[index])
        if method != zipfile.ZIP_STORED:
            data = self.read(index)
            return data[:HEADER_BYTES], data[-len(PNG_END) :]
        offset = self._data_offset(start)
        tail = min(len(PNG_END), stored)
        return self._bytes(offset, min(HEADER_BYTES, stored)), self._bytes(offset + stored - tail, tail)

    def _data_offset(self, start: int) -> int:
        """Skip the local header: 30 bytes, then a name and an extra field whose lengths stand at 26 and 28."""
        header = self._bytes(start, 30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError("is damaged inside the ZIP")
        name, extra = struct.unpack_from("<HH", header, 26)
        return start + 30 + int(name) + int(extra)

    def _bytes(self, offset: int, size: int) -> bytes:
        if self._stream is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._stream = open(self.path, "rb", buffering=0)  # noqa: SIM115 - kept open for the process
        if hasattr(os, "pread"):
            return os.pread(self._stream.fileno(), size, offset)
        self._stream.seek(offset)
        return self._stream.read(size)


def open_source(path: Path) -> FolderSource | ZipSource:
    if not path.exists():
        raise UserError(f"There is no {path}; give a ZIP or a folder made by 'python dataset_tool.py make' or 'demo'.")
    if path.is_dir():
        return FolderSource(path)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is an empty file, not a patch ZIP.")
    try:
        return ZipSource(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise UserError(
            f"{path} is not a readable ZIP ({error}); it may be truncated or another kind of file."
        ) from error


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX/")) or "/." in name


def reason_of(error: BaseException) -> str:
    """An error as the end of "patch x ..."."""
    text = str(error) or type(error).__name__
    return text if text.startswith("is ") else f"cannot be decoded ({text})"


def counted(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{number} {noun if number == 1 else plural}"


def listed(items: list[str], separator: str = ", ", limit: int = 5) -> str:
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more

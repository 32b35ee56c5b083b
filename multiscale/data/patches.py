"""A data set is a bag of square PNG patches, each with one number: the log2 of its zoom (method: "Data").

The container is a ZIP or a folder that holds the PNG files and one ``dataset.json``::

    {"labels": [["00000/img00000000.png", 3.2718], ...]}

Opening reads only the directory of the ZIP, that JSON and the header of the first patch, so that a set of 150,000
patches opens in a second or two; patches are read one by one when they are asked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.files import atomic_write

LABELS_FILE = "dataset.json"
MAX_LABEL = 32.0
"""Labels are log2 of a zoom; a label above this is a zoom factor written by mistake."""

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_HEADER_BYTES = 33
_CHANNELS_OF_COLOUR_TYPE = {0: 1, 2: 3}
_COLOUR_TYPE_NAMES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey + alpha", 6: "RGBA"}
_READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


class PatchFormat(NamedTuple):
    """What the header of a PNG says, and what all patches of a set share."""

    width: int
    height: int
    bits: int
    colour_type: int

    def __str__(self) -> str:
        kind = _COLOUR_TYPE_NAMES.get(self.colour_type, f"colour type {self.colour_type}")
        return f"{self.width} x {self.height} {self.bits}-bit {kind}"


def count_octaves(labels: np.ndarray) -> int:
    """Octaves S spanned by labels (float [n], n >= 1, log2 zoom >= 0): max(1, ceil(largest label))."""
    return max(1, math.ceil(float(np.max(labels))))


def octave_of(labels: np.ndarray, octaves: int) -> np.ndarray:
    """Octave of each label, int64 [n]: floor(label), the top label counted into the octave below it."""
    return np.minimum(np.floor(labels).astype(np.int64), octaves - 1)


class PatchDataset:
    """Patches and their scales, from a ZIP or a folder; picklable, and safe in forked or spawned loader workers.

    Attributes:
        path: Where it was opened.
        names: Names of the patches inside the container, sorted; index i everywhere refers to this order.
        labels: float64 [n], log2 of the zoom of each patch, 0 = the whole scene.
        resolution: Side N of a patch in pixels, a power of two.
        num_channels: 1 (grey) or 3 (RGB).
        octaves: S = max(1, ceil(largest label)).
        patch_octaves: int64 [n], octave of each patch, 0 ... S - 1.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the container and check everything that can be known without decoding patches.

        Raises:
            UserError: missing or empty; neither ZIP nor folder; ``dataset.json`` missing or broken; patches without a
                label or labels without a patch; labels that are NaN, infinite or below 0; a first patch that is not
                an 8-bit grey or RGB PNG, square, with a power-of-two side.
        """
        self.path = Path(path)
        self._source = _open_source(self.path)
        table = _read_labels(self._source, self.path)
        self.names: list[str] = sorted(table)
        self._source.keep(self.names)
        self.labels = np.array([table[name] for name in self.names], dtype=np.float64)
        self.octaves = count_octaves(self.labels)
        self.patch_octaves = octave_of(self.labels, self.octaves)
        self._format = self._format_of_first()
        self.resolution = self._format.width
        self.num_channels = _CHANNELS_OF_COLOUR_TYPE[self._format.colour_type]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, float]:
        """Decode one patch.

        Args:
            index: -n <= index < n.

        Returns:
            The patch, uint8 [C, N, N], and its label s.

        Raises:
            UserError: the file is broken, or of another size or mode than the first.
        """
        index = range(len(self.names))[index]
        try:
            pixels = _decode_png(self._source.read(index), self._format)
        except _READ_ERRORS as error:
            raise UserError(
                f"Patch {self.names[index]} in {self.path} cannot be used: {_reason(error)} "
                f"('python dataset_tool.py inspect {self.path}' lists all that are bad)."
            ) from error
        return pixels, float(self.labels[index])

    def octave_of(self, index: int) -> int:
        """Octave of one patch, 0 ... octaves - 1."""
        return int(self.patch_octaves[index])

    def counts(self) -> np.ndarray:
        """Patches in each octave, int64 [octaves]."""
        return np.bincount(self.patch_octaves, minlength=self.octaves)

    def check_headers(self) -> None:
        """Look at the header and the end of every patch without decoding any; some 10 microseconds a patch.

        Raises:
            UserError: names the patches (the first 100) that are truncated, not PNG, or of another size or mode than the first.
        """
        found = ((name, self._header_problem(i)) for i, name in enumerate(self.names))
        problems = [f"{name} {problem}" for name, problem in found if problem is not None]
        if problems:
            raise UserError(
                f"{_count(len(problems), 'patch')} of {len(self)} in {self.path} cannot be used: {_some(problems, '; ', 100)}"
                f" (the first, {self.names[0]}, is {self._format}, and so must be all)."
            )

    def problem_of(self, index: int) -> str | None:
        """Decode one patch in full and say what is wrong with it (``"is truncated"``), or ``None``."""
        problem = self._header_problem(index)
        if problem is None:
            try:
                _decode_png(self._source.read(index, verify=True), self._format)
            except _READ_ERRORS as error:
                problem = _reason(error)
        return problem

    def _header_problem(self, index: int) -> str | None:
        try:
            head, tail = self._source.ends(index)
            found = _png_format(head)
            if found != self._format:
                return f"is {found}"
            if tail != _PNG_END and _PNG_END not in self._source.read(index):
                return "is truncated"
        except _READ_ERRORS as error:
            return _reason(error)
        return None

    def _format_of_first(self) -> PatchFormat:
        where = f"Patch {self.names[0]} in {self.path}"
        try:
            found = _png_format(self._source.ends(0)[0])
        except _READ_ERRORS as error:
            raise UserError(f"{where} cannot be used: {_reason(error)}.") from error
        side = found.width
        if found.height != side:
            raise UserError(f"{where} is {found.width} x {found.height} pixels; patches must be square.")
        if side < 1 or side & (side - 1):
            raise UserError(f"{where} is {side} x {side} pixels; the side must be a power of two (16 ... 1024).")
        if found.bits != 8 or found.colour_type not in _CHANNELS_OF_COLOUR_TYPE:
            raise UserError(f"{where} is {found}; patches must be 8-bit grey or 8-bit RGB.")
        return found


def check_patches(
    dataset: PatchDataset, *, workers: int = 1, progress: Callable[[int], Any] | None = None
) -> list[tuple[str, str]]:
    """Decode every patch and list all that cannot be used.

    Args:
        dataset: The opened set.
        workers: Processes, >= 1.
        progress: Called with the number of patches done since its last call.

    Returns:
        (name, what is wrong) of each bad patch, in the order of ``dataset.names``; empty if all are well.
    """
    block = 256
    ranges = [(start, min(start + block, len(dataset))) for start in range(0, len(dataset), block)]
    problems: list[tuple[str, str]] = []
    with contextlib.ExitStack() as stack:
        mapped: Iterable[list[tuple[str, str]]]
        if workers > 1 and len(ranges) > 1:
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, initializer=_set_worker_dataset, initargs=(dataset,))
            )
            mapped = pool.map(_check_range_in_worker, ranges)
        else:
            mapped = (_check_range(dataset, span) for span in ranges)
        for (start, stop), found in zip(ranges, mapped, strict=True):
            problems += found
            if progress is not None:
                progress(stop - start)
    return problems


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
    if not dest.exists():
        return
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


class _FolderSource:
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
            head = stream.read(_HEADER_BYTES)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - len(_PNG_END)))
            return head, stream.read()


class _ZipSource:
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
            return data[:_HEADER_BYTES], data[-len(_PNG_END) :]
        offset = self._data_offset(start)
        tail = min(len(_PNG_END), stored)
        return self._bytes(offset, min(_HEADER_BYTES, stored)), self._bytes(offset + stored - tail, tail)

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


def _open_source(path: Path) -> _FolderSource | _ZipSource:
    if not path.exists():
        raise UserError(f"There is no {path}; give a ZIP or a folder made by 'python dataset_tool.py make' or 'demo'.")
    if path.is_dir():
        return _FolderSource(path)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is an empty file, not a patch ZIP.")
    try:
        return _ZipSource(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise UserError(
            f"{path} is not a readable ZIP ({error}); it may be truncated or another kind of file."
        ) from error


def _read_labels(source: _FolderSource | _ZipSource, path: Path) -> dict[str, float]:
    """Labels by name, complete and valid, or a UserError."""
    patches = {name for name in source.files if name.lower().endswith(".png") and not _is_hidden(name)}
    if not source.files:
        raise UserError(f"{path} is empty: it holds neither patches nor {LABELS_FILE}.")
    if LABELS_FILE not in source.files:
        inner = [name for name in source.files if name.endswith("/" + LABELS_FILE)]
        hint = f"; it stands at {inner[0]}, but must be at the top level" if inner else ""
        raise UserError(f"{path} holds no {LABELS_FILE}, which gives each patch its scale{hint}.")
    try:
        pairs = json.loads(source.read_name(LABELS_FILE))["labels"]
        table = {str(name): _as_label(value) for name, value in pairs}
    except (*_READ_ERRORS, KeyError, TypeError, zipfile.BadZipFile) as error:
        form = '{"labels": [["00000/img00000000.png", 3.27], ...]}'
        raise UserError(
            f"{LABELS_FILE} in {path} is not of the form {form} ({type(error).__name__}: {error})."
        ) from error
    if not patches and not table:
        raise UserError(f"{path} holds no patches.")
    unlabelled, absent = sorted(patches - set(table)), sorted(set(table) - source.files)
    if unlabelled:
        raise UserError(f"{_count(len(unlabelled), 'patch')} in {path} without a label: {_some(unlabelled)}.")
    if absent:
        raise UserError(
            f"{LABELS_FILE} in {path} names {_count(len(absent), 'patch')} that {path} lacks: {_some(absent)}."
        )
    if len(pairs) != len(table):
        raise UserError(f"{LABELS_FILE} in {path} names {_count(len(pairs) - len(table), 'patch')} twice.")
    wrong = [f"{name} = {value:g}" for name, value in sorted(table.items()) if not 0 <= value <= MAX_LABEL]
    if wrong:
        raise UserError(
            f"{_count(len(wrong), 'label')} in {path} outside 0 ... {MAX_LABEL:g}: {_some(wrong)}; "
            "a label is log2 of the zoom, 0 for the whole scene."
        )
    return table


def _as_label(value: Any) -> float:
    """A label is a number, or a list that holds one number, as some tools write it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a label is {value!r}, not a number")
    return float(value)


def _png_format(head: bytes) -> PatchFormat:
    if head[: len(_PNG_START)] != _PNG_START or len(head) < _HEADER_BYTES:
        raise ValueError("is not a PNG file" if len(head) >= len(_PNG_START) else "is truncated")
    return PatchFormat(*struct.unpack_from(">IIBB", head, len(_PNG_START)))


def _decode_png(data: bytes, expected: PatchFormat) -> np.ndarray:
    """uint8 [C, N, N] of a PNG of the expected format, or ValueError / OSError / SyntaxError."""
    found = _png_format(data[:_HEADER_BYTES])
    if found != expected:
        raise ValueError(f"is {found}, but the first patch is {expected}")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX/")) or "/." in name


def _reason(error: BaseException) -> str:
    """An error as the end of "patch x ..."."""
    text = str(error) or type(error).__name__
    return text if text.startswith("is ") else f"cannot be decoded ({text})"


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{number} {noun if number == 1 else plural}"


def _some(items: list[str], separator: str = ", ", limit: int = 5) -> str:
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


_worker_dataset: PatchDataset | None = None


def _set_worker_dataset(dataset: PatchDataset) -> None:
    global _worker_dataset
    _worker_dataset = dataset


def _check_range(dataset: PatchDataset, span: tuple[int, int]) -> list[tuple[str, str]]:
    found = [(dataset.names[i], dataset.problem_of(i)) for i in range(*span)]
    return [(name, problem) for name, problem in found if problem is not None]


def _check_range_in_worker(span: tuple[int, int]) -> list[tuple[str, str]]:
    assert _worker_dataset is not None
    return _check_range(_worker_dataset, span)

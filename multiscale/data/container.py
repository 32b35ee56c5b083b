"""The container of a patch set: a ZIP (stored, not deflated) or a folder of PNG files and one ``dataset.json``.

Large sets may be split into several such containers, each complete in itself. Writing is whole or nothing.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.errors import UserError, cannot_write
from dnnlib.extensions import import_extensions
from dnnlib.files import atomic_folder, atomic_write, check_writable, remove_abandoned
from dnnlib.names import is_file_name, typed_path
from dnnlib.pictures import PNG_STRATEGY
from dnnlib.reading import kind_of_file, regular_size
from multiscale.data.archive import ZipSource
from multiscale.data.source import LABELS_FILE, MAX_LABEL, FilesSource, Names, PatchSource, how_to_make

LOOKED_AT = 100
"""Files of a folder without labels that are looked at for what they are."""
READERS: dict[str, Callable[[Path], PatchSource]] = {}
"""How other stores are opened, by the suffix of their name, such as ``.sqlite``; all else is a folder or a ZIP."""


class PatchWriter:
    """Write a container that is whole or absent: a ZIP if ``dest`` ends in ``.zip``, a folder otherwise.

    Use as a context manager; the container appears under its name only when the block ends without an exception. Equal
    patches and labels give equal bytes (the ZIP's time stamps are fixed, and its files are stored, not deflated).
    """

    def __init__(self, dest: str | Path, *, force: bool = False, facts: dict[str, Any] | None = None) -> None:
        """Args:
            dest: The ZIP or folder to make.
            force: Replace an existing ZIP or patch folder.
            facts: Of the set, written beside the labels; keys other than ``labels``.

        Raises:
            UserError: ``dest`` exists and ``force`` is not given (also if it has come into being by the end), or it is
                something other than a patch set.
        """
        self.dest = typed_path(dest)
        self.is_zip = self.dest.suffix.lower() == ".zip"
        self.force = force
        self.facts = facts or {}
        self._labels: list[tuple[str, float]] = []
        check_dest(self.dest, force=force)

    def __enter__(self) -> PatchWriter:
        self._stack = contextlib.ExitStack()
        self._write = self._stack.enter_context((_zip_sink if self.is_zip else _folder_sink)(self.dest, self.force))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            if kind is None:
                self._write(LABELS_FILE, json.dumps({**self.facts, "labels": self._labels}).encode())
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
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(
        stream, "PNG", compress_type=PNG_STRATEGY
    )
    return stream.getvalue()


def check_dest(dest: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a ``dest`` that exists (without ``force``), is not ours to replace or cannot be written.

    Raises:
        UserError: says what stands there and what to do.
    """
    check_writable(dest, folder="replaced")
    try:
        exists = dest.exists()
    except OSError as error:
        raise cannot_write(dest, error) from error
    if not exists:
        if dest.suffix.lower() != ".zip" and is_file_name(str(dest)):
            raise UserError(
                f"{dest} ends in {dest.suffix} as a file does, and patches are written to a ZIP or a folder: give "
                f"{dest.with_suffix('.zip').name}, say (or make the folder first, if it is to have that name)."
            )
        return
    if dest.suffix.lower() == ".zip":
        if dest.is_dir():
            raise UserError(f"{dest} is a folder; give a file name for the ZIP.")
    elif not dest.is_dir():
        raise UserError(f"{dest} is a file; give a folder, or a name that ends in .zip.")
    elif not any(dest.iterdir()):
        return
    else:
        _check_is_set(dest, dest)
    remove_abandoned(dest.parent)  # the process that wrote it may have been killed just before its end
    if not force:
        raise UserError(f"{dest} exists; pass --force to replace it, or give another --dest.")


def _check_is_set(folder: Path, dest: Path) -> None:
    """UserError unless a folder, which stands or stood at ``dest``, is a patch set."""
    if not (folder / LABELS_FILE).is_file():
        raise UserError(f"Folder {dest} is not empty and holds no patch set; give another --dest.")


@contextlib.contextmanager
def _zip_sink(dest: Path, force: bool) -> Any:
    with atomic_write(dest, replace=force) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)

        yield write


@contextlib.contextmanager
def _folder_sink(dest: Path, force: bool) -> Any:
    with atomic_folder(dest, may_replace=(lambda old: _check_is_set(old, dest)) if force else None) as new:

        def write(name: str, data: bytes) -> None:
            file = new / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)

        yield write


class FolderSource(FilesSource):
    """Patches as files below a folder.

    Attributes:
        path: The folder.
        files: Names of all files below it, with ``/`` between folders, until ``keep``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.files = []
        for folder, _, files in os.walk(path):
            below = Path(folder).relative_to(path).as_posix()
            self.files += files if below == "." else [f"{below}/{file}" for file in files]
        self._names = Names()

    def keep(self, names: list[str]) -> None:
        """Forget all files but those named, which from now on go by their places in ``names``."""
        self._names, self.files = Names(names), []

    def advice_without_labels(self) -> str:
        """How patches are made, if there are pictures among the first files."""
        if any(_kind_of_picture(self.path / name) for name in sorted(self.files)[:LOOKED_AT]):
            return f"; if it holds pictures to cut patches from: {how_to_make(self.path)}"
        return ""

    def read_name(self, name: str) -> bytes:
        """A file by name."""
        return (self.path / name).read_bytes()

    def read(self, index: int) -> bytes:
        """A file, or OSError."""
        return self.read_name(self._names[index])

    def ends(self, index: int, head: int, tail: int) -> tuple[bytes, bytes]:
        """The first and last bytes of a file, as many as asked for."""
        with open(f"{self.path}/{self._names[index]}", "rb", buffering=0) as stream:
            begin = stream.read(head)
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - tail))
            return begin, stream.read()


def _kind_of_picture(path: Path) -> str | None:
    """What picture a file seems to be; None: none, or it cannot be read."""
    try:
        regular_size(path, "the file")
        kind = kind_of_file(path)
    except (UserError, OSError):
        return None
    return kind if kind is not None and kind.endswith("picture") else None


def open_sources(path: str | Path) -> list[PatchSource]:
    """Open a ZIP, a folder, a store of ``READERS``, or all that a pattern with ``*``, ``?`` or ``[...]`` matches, by name.

    A path that exists is taken as it stands, whatever characters it holds.

    Raises:
        UserError: nothing is there, or nothing matches; one of them is not a readable ZIP or folder.
    """
    if re.match("https?://", str(path)):
        raise UserError(f"{path} is an address, and patches are files; make them from its tiles: {how_to_make(path)}.")
    path = typed_path(path)
    if path.exists() or not glob.has_magic(str(path)):
        return [_open_source(path)]
    matches = sorted(glob.glob(str(path)))
    if not matches:
        raise UserError(f"Nothing matches {path}; give a ZIP, a folder, or a pattern of ZIPs that exist.")
    return [_open_source(Path(match)) for match in matches]


def _open_source(path: Path) -> PatchSource:
    if not path.exists():
        raise UserError(f"There is no {path}; give a ZIP or a folder made by 'python dataset_tool.py make' or 'demo'.")
    import_extensions()
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()](path)
    if path.is_dir():
        return FolderSource(path)
    if regular_size(path, "the patches") == 0:
        raise UserError(f"{path} is an empty file, not a patch ZIP.")
    if kind := _kind_of_picture(path):
        raise UserError(f"{path} is {kind}, not a set of patches; make one from it: {how_to_make(path)}.")
    try:
        return ZipSource(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be read as a ZIP: {error}.") from error

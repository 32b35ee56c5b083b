"""Where a data set's patches come from: anything that lists names and labels, and gives the PNG file of each.

A store of another kind, such as a database, is one class of :class:`PatchSource`, named in ``container.READERS``. (The
pictures from which sets are made are :class:`multiscale.data.cutting.Source`.)
"""

from __future__ import annotations

import contextlib
import difflib
import json
import shlex
import struct
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np

from dnnlib.errors import UserError

LABELS_FILE = "dataset.json"
MAX_LABEL = 32.0
"""Labels are log2 of a zoom; a label above this is a zoom factor written by mistake."""
NEAR = 1000
"""Names among which a near miss is looked for."""
READ_ERRORS = (OSError, ValueError, OverflowError, SyntaxError, EOFError, struct.error)
"""What reading a patch that is missing or broken may raise; anything else is a mistake in a program."""


class Names(Sequence[str]):
    """Many names in one block of bytes: pickled and shared with forked processes at their bare length, 8 bytes more each."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._text = b"".join(encoded)
        self._stops = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._stops) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._text[self._stops[place] : self._stops[place + 1]].decode("utf-8", "surrogateescape")


class PatchSource(ABC):
    """A store of PNG patches. It must survive pickling and forking, for the workers of a loader have it too.

    Args:
        path: The file or folder, for messages.

    Raises:
        UserError: by the constructor, if it cannot be opened.
    """

    spans: Sequence[tuple[float, float]] = ()
    """Labels, lowest and highest, that each picture has which patches were cut from; empty where that is not known."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def listing(self) -> tuple[Sequence[str], np.ndarray]:
        """Names of all patches, different and in an order that is always the same, and labels, float64 [n].

        A label is log2 of the zoom, 0 for the whole scene, at most 32. Called once, before anything else; from then on
        patches go by their places in the list.

        Raises:
            UserError: there are none, or they cannot be read.
        """

    @abstractmethod
    def read(self, index: int) -> bytes:
        """A patch as PNG; a store of pixels returns ``encode_png`` of them. One of ``READ_ERRORS`` if it is broken."""

    def ends(self, index: int, head: int, tail: int) -> tuple[bytes, bytes]:
        """The first and last bytes of a patch, as many as asked for; of use where they are had without the others."""
        data = self.read(index)
        return data[:head], data[-tail:]

    def checksums(self, count: int) -> np.ndarray:
        """CRC-32 of each of the ``count`` patches' files, uint32; 0 for one that cannot be read. A set is known by them."""
        found = np.zeros(count, np.uint32)
        for i in range(count):
            with contextlib.suppress(*READ_ERRORS):
                found[i] = zlib.crc32(self.read(i))
        return found

    def unlike(self, count: int, begin: bytes, end: bytes) -> list[int]:
        """Which of the ``count`` patches do not begin and end with these bytes, or cannot be read."""
        suspects = []
        for i in range(count):
            try:
                found = self.ends(i, len(begin), len(end))
            except READ_ERRORS:
                found = (b"", b"")
            if found != (begin, end):
                suspects.append(i)
        return suspects


class FilesSource(PatchSource):
    """A store of files, one of which is ``dataset.json`` with the labels.

    Attributes:
        path: The container.
        files: Names of all files in it, with ``/`` between folders, until ``keep``.
    """

    files: list[str]

    @abstractmethod
    def keep(self, names: list[str]) -> None:
        """Forget all files but those named, which from now on go by their places in ``names``."""

    @abstractmethod
    def read_name(self, name: str) -> bytes:
        """A file by name, before ``keep``."""

    def advice_without_labels(self) -> str:
        """The end of a sentence that says how a container without labels becomes one with them, if it can be known."""
        return ""

    def read_labels(self) -> bytes:
        """The file of labels, before ``keep``."""
        return self.read_name(LABELS_FILE)

    def listing(self) -> tuple[Names, np.ndarray]:
        """Names, sorted, and labels, float64 [n], of all patches; or a UserError."""
        path, files = self.path, self.files
        if not files:
            raise UserError(f"{path} is empty: it holds neither patches nor {LABELS_FILE}.")
        if LABELS_FILE not in files:
            inner = [name for name in files if name.endswith("/" + LABELS_FILE)]
            hint = f"; it stands at {inner[0]}, but must be at the top level" if inner else ""
            raise UserError(
                f"{path} holds no {LABELS_FILE}, which gives each patch its scale{hint or self.advice_without_labels()}."
            )
        try:
            facts = json.loads(self.read_labels())
            pairs = facts["labels"]
            names = [str(name) for name, _ in pairs]
            values = [value if type(value) is float else _as_label(value) for _, value in pairs]
        except (*READ_ERRORS, KeyError, TypeError, RecursionError) as error:
            form = '{"labels": [["00000/img00000000.png", 3.27], ...]}'
            raise UserError(
                f"{LABELS_FILE} in {path} is not of the form {form} ({type(error).__name__}: {error})."
            ) from error
        self.spans = _spans(facts.get("pictures"))
        del facts, pairs  # most of the memory that opening takes
        labels = np.array(values, dtype=np.float64)
        names = _as_held(names, files)
        _match(path, names, files)
        ordered = sorted(names)
        if ordered != names:
            labels = labels[sorted(range(len(names)), key=names.__getitem__)]
        self.keep(ordered)
        return Names(ordered), labels


def how_to_make(source: str | Path) -> str:
    """The command that makes patches from a picture, a folder of them, or tiles."""
    return f"python dataset_tool.py make --source {shlex.quote(str(source))} --dest patches.zip"


def check_labels(path: Path, names: Sequence[str], labels: np.ndarray) -> None:
    """Refuse labels that are NaN, infinite, below 0 or too large; of any source."""
    wrong = [f"{names[i]} = {labels[i]:g}" for i in np.flatnonzero(~((labels >= 0) & (labels <= MAX_LABEL))).tolist()]
    if wrong:
        raise UserError(
            f"{counted(len(wrong), 'label')} in {path} outside 0 ... {MAX_LABEL:g}: {listed(wrong)}; "
            "a label is log2 of the zoom, 0 for the whole scene."
        )


def _as_held(names: list[str], files: list[str]) -> list[str]:
    """The names as the container writes them: with ``\\`` between folders, another form of Unicode, or UTF-8 taken for cp437.

    Names that are there, and those that could be two files, stay as they are.
    """
    held = set(files)
    if all(name in held for name in names):
        return names
    by_form: dict[str, list[str]] = {}
    for file in held.difference(names):
        by_form.setdefault(_form(file), []).append(file)
    found = [name if name in held else by_form.get(_form(name), [name]) for name in names]
    return [
        one if isinstance(one, str) else one[0] if len(one) == 1 else name
        for one, name in zip(found, names, strict=True)
    ]


def _form(name: str) -> str:
    """One way to write a name that tools write in several."""
    with contextlib.suppress(UnicodeError):
        if not name.isascii():
            name = name.encode("cp437").decode(
                "utf-8"
            )  # what Python's and others' readers make of UTF-8 without its flag
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


def _match(path: Path, names: list[str], files: list[str]) -> None:
    """Refuse patches without a label, labels without a patch, and two labels of one patch."""
    labelled, held = set(names), set(files)
    unlabelled = sorted(name for name in held - labelled if name.lower().endswith(".png") and not is_hidden(name))
    if not names and not unlabelled:
        raise UserError(f"{path} holds no patches.")
    absent = sorted(labelled - held)
    if unlabelled:
        plain = {name.casefold(): name for name in absent[:NEAR]}
        near = difflib.get_close_matches(unlabelled[0].casefold(), plain, n=1, cutoff=0.7)
        hint = f"; {LABELS_FILE} names {plain[near[0]]}, which is not there" if near else ""
        raise UserError(f"{counted(len(unlabelled), 'patch')} in {path} without a label: {listed(unlabelled)}{hint}.")
    if absent:
        raise UserError(
            f"{LABELS_FILE} in {path} names {counted(len(absent), 'patch')} that {path} lacks: {listed(absent)}."
        )
    if len(names) != len(labelled):
        raise UserError(f"{LABELS_FILE} in {path} names {counted(len(names) - len(labelled), 'patch')} twice.")


def _spans(pictures: Any) -> list[tuple[float, float]]:
    """Pairs of finite numbers; nothing if they are anything else, for they serve a chart only."""
    try:
        spans = [(float(low), float(high)) for low, high in pictures or ()]
    except (TypeError, ValueError, OverflowError):
        return []
    return spans if np.isfinite(np.array(spans, dtype=np.float64)).all() else []


def _as_label(value: Any) -> float:
    """A label is a number, or a list that holds one number, as some tools write it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a label is {value!r}, not a number")
    return float(value)


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

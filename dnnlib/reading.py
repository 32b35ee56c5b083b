"""Untrusted files: read as what they must be, regular and bounded, or refused in one sentence, whatever a parser raises.

A parser may raise anything on bytes it was not made for; :func:`parsed` is the one place that catches it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dnnlib.errors import UserError

TEXT_BYTES = 1 << 20
"""Limit of a file of settings or facts: ours have a few thousand."""
DEPTH = 32
"""Limit of nesting: ours is 4."""
DIGITS = 40
REASON_CHARACTERS = 200
HEAD_BYTES = 16
"""Of a file, by which :func:`kind_of` judges."""
_KINDS = {
    "an empty file": rb"\Z",
    "a PNG picture": rb"\x89PNG\r\n\x1a\n",
    "a JPEG picture": rb"\xff\xd8\xff",
    "a TIFF picture": rb"II[*+]\0|MM\0[*+]",
    "a GIF picture": rb"GIF8[79]a",
    "a BMP picture": rb"BM.{4}\0{4}",
    "a WebP picture": rb"RIFF.{4}WEBP",
    "an AVIF or HEIF picture": rb".{4}ftyp(avif|avis|heic|heix|heif|mif1|msf1)",
    "a JPEG 2000 picture": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "a JPEG XL picture": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
    "a FITS picture": rb"SIMPLE  = ",
    "a PGM or PPM picture": rb"P[2356]\s",
    "a Canon raw file": rb".{4}ftypcrx ",
    "an MP4 film": rb".{4}ftyp",
    "a PDF": rb"%PDF-",
    "an HDF5 file": rb"\x89HDF\r\n\x1a\n",
    "a ZIP": rb"PK\x03\x04",
    "a pickle": rb"\x80[\x02-\x05]",
}
"""Kinds of files by how they begin; earlier ones first."""

T = TypeVar("T")


def regular_size(path: str | Path, what: str) -> int:
    """Size in bytes of a regular file: not a pipe, which would block, nor a device.

    Args:
        path: Of the file, or a link to it.
        what: What it should be, with an article, such as ``the config``.

    Raises:
        UserError: it does not exist, cannot be accessed, or is something else.
    """
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {what} {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(facts.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(facts.st_mode), "a device")
        raise UserError(f"Cannot read {what} {path}: it is {kind}; give a file.")
    return facts.st_size


def read_bytes(path: str | Path, what: str, limit: int) -> bytes:
    """A regular file's bytes, at most ``limit`` of them; UserError as :func:`read_text`, but of any encoding."""
    size = regular_size(path, what)
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UserError(f"Cannot read {what} {path}: {error.strerror or error}.") from error
    if len(data) > limit:
        raise UserError(f"Cannot read {what} {path}: it has {size} bytes, and {limit} are allowed; give another file.")
    return data


def read_text(path: str | Path, what: str, limit: int = TEXT_BYTES) -> str:
    """A regular file's UTF-8 text.

    Raises:
        UserError: as :func:`regular_size`, or it is longer than ``limit`` bytes, or not UTF-8.
    """
    data = read_bytes(path, what, limit)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        why = f"it is {kind}, not text" if (kind := kind_of(data)) else short_reason(error)
        raise UserError(f"Cannot read {what} {path}: {why}.") from error


def parsed(parse: Callable[[], T], sentence: str) -> T:
    """What ``parse()`` returns; whatever it raises, except ``UserError`` and ``OSError``, becomes a :class:`UserError`.

    Args:
        parse: Reads what somebody else may have written.
        sentence: What is wrong; ``{reason}`` in it becomes the parser's message, cut to one short line.
    """
    try:
        return parse()
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(sentence.replace("{reason}", short_reason(error))) from error


def kind_of(head: bytes) -> str | None:
    """What a file seems to be, with an article, such as ``"a TIFF picture"``; all pictures end in ``picture``.

    Args:
        head: Its first ``HEAD_BYTES`` bytes.

    Returns:
        None if they are of no kind that is known here.
    """
    return next((kind for kind, begin in _KINDS.items() if re.match(begin, head, re.DOTALL)), None)


def kind_of_file(path: str | Path) -> str | None:
    """:func:`kind_of` a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        return kind_of(stream.read(HEAD_BYTES))


def each_once(entries: Iterable[T], meaning: Callable[[T], Hashable] | None = None) -> list[T]:
    """The entries of a list that a user wrote, in its order; one that means the same as an earlier one is left out.

    Args:
        entries: What was written: worlds, measures, files.
        meaning: Equal for entries that mean the same; None: they are equal themselves.
    """
    first: dict[Hashable, T] = {}
    for entry in entries:
        first.setdefault(entry if meaning is None else meaning(entry), entry)
    return list(first.values())


def short_reason(error: BaseException) -> str:
    """What an exception says, on one line, cut off: it may hold the input."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]} ..."


def from_yaml(text: str) -> Any:
    """Plain values of YAML; call it through :func:`parsed`, as it raises what PyYAML raises, and ValueError.

    Not allowed: aliases, with which a few bytes stand for a billion; nesting beyond ``DEPTH``; a key that is there twice, of
    whose values one would be dropped silently.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias (*{(event.anchor or '')[:40]}); write out what that stands for")
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """Of plain values only, as its base is; refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the base does, after which fewer values than keys mean a repetition."""
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"it has {str(twice)[:40]!r} twice; keep one of them")
        return values


def from_json(text: str | bytes) -> Any:
    """Plain values of JSON; call it through :func:`parsed`, as it raises what ``json`` raises, and ValueError.

    Nesting beyond ``DEPTH`` is not allowed, nor whole numbers of more than ``DIGITS``, which no float can hold.
    """
    values = json.loads(text, parse_int=_whole_number)
    _check_depth(values, DEPTH)
    return values


def _whole_number(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _check_depth(values: Any, left: int) -> None:
    if isinstance(values, dict | list):
        if not left:
            raise ValueError(f"it is nested more than {DEPTH} deep")
        for value in values.values() if isinstance(values, dict) else values:
            _check_depth(value, left - 1)

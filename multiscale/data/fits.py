"""FITS, the files of astronomers: cards of text, then the numbers as they are, which libvips reads where they lie.

Sections 3 and 4 of the FITS Standard 4.0: the first image of a file, in its primary part or an extension. It is stored from the
bottom up. Compressed tiles and 64-bit integers are not read.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

BLOCK_BYTES = 2880
CARD_BYTES = 80
_MOST_BLOCKS = 1000
"""Of one header."""
_FORMATS = {8: "uchar", 16: "short", 32: "int", -32: "float", -64: "double"}
_UNSIGNED = {"short": ("ushort", 1 << 15), "int": ("uint", 1 << 31)}
"""How unsigned integers are stored: as integers with a sign, and an offset (section 5.2.5)."""


class Stored(NamedTuple):
    """An image as it lies in a file.

    Attributes:
        offset: Of its first byte.
        width, height, planes: Of its numbers; all of a plane lie together.
        form: Of the numbers, as libvips calls it.
        scale, zero: What is meant by a number x is scale x + zero.
        blank: The integer that stands for none.
    """

    offset: int
    width: int
    height: int
    planes: int
    form: str
    scale: float
    zero: float
    blank: float | None


def is_fits(path: Path) -> bool:
    """Whether a file begins as every FITS file does."""
    with open(path, "rb") as stream:
        return stream.read(30) == b"SIMPLE  =" + b"T".rjust(21)


def find_image(path: Path) -> Stored:
    """The first image of a file.

    Raises:
        ValueError: damaged, of numbers that libvips does not have, of other than one or three planes, or without an image.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        while stream.tell() + BLOCK_BYTES <= size:
            cards = _read_header(stream)
            kind = str(cards.get("XTENSION", "IMAGE"))
            if kind == "BINTABLE" and cards.get("ZIMAGE") == "T":
                raise ValueError("its image is compressed; unpack it with funpack")
            bits = int(cards["BITPIX"])
            axes = [int(cards[f"NAXIS{i + 1}"]) for i in range(int(cards["NAXIS"]))]
            numbers = math.prod(axes) if axes else 0
            count = (numbers + int(cards.get("PCOUNT", 0))) * int(cards.get("GCOUNT", 1)) * (abs(bits) // 8)
            if min([count, *axes]) < 0 or stream.tell() + count > size:
                raise ValueError(f"it claims {' x '.join(map(str, axes))} numbers of {abs(bits)} bits, and is shorter")
            if kind == "IMAGE" and len(axes) >= 2 and numbers:
                return _stored(stream.tell(), axes, bits, cards)
            stream.seek(-(-count // BLOCK_BYTES) * BLOCK_BYTES, os.SEEK_CUR)
    raise ValueError("it holds no image")


def _read_header(stream: BinaryIO) -> dict[str, str]:
    """Values by keywords, without the quotes of texts."""
    cards: dict[str, str] = {}
    for _ in range(_MOST_BLOCKS):
        block = stream.read(BLOCK_BYTES).decode("latin-1")
        if len(block) < BLOCK_BYTES:
            break
        for start in range(0, BLOCK_BYTES, CARD_BYTES):
            card = block[start : start + CARD_BYTES]
            if card.rstrip() == "END":
                return cards
            if card[8:10] == "= ":
                value = card[10:].strip()
                text = value[1:].partition("'")[0] if value.startswith("'") else value.partition("/")[0]
                cards.setdefault(card[:8].rstrip(), text.strip())
    raise ValueError("its header does not end")


def _stored(offset: int, axes: list[int], bits: int, cards: dict[str, str]) -> Stored:
    if bits not in _FORMATS:
        raise ValueError(f"its numbers have {bits} bits, and {', '.join(map(str, _FORMATS))} can be read")
    scale, zero = (
        float(cards.get(key, default).replace("D", "E")) for key, default in (("BSCALE", "1"), ("BZERO", "0"))
    )
    planes = math.prod(axes[2:])
    if planes not in (1, 3):
        raise ValueError(f"it has {planes} planes; save one (grey) or three (red, green, blue) of them")
    blank = float(cards["BLANK"]) if "BLANK" in cards and bits > 0 else None
    return Stored(offset, axes[0], axes[1], planes, _FORMATS[bits], scale, zero, blank)


def open_fits(vips: Any, path: Path) -> tuple[Any, float | None]:
    """An image of libvips, not decoded yet, upright, and the number that stands for none.

    Args:
        vips: The module ``pyvips``.
        path: Of a FITS file.

    Raises:
        ValueError: as :func:`find_image`.
    """
    stored = find_image(path)
    rows = vips.Image.rawload(
        os.fsencode(path), stored.width, stored.height * stored.planes, 1, offset=stored.offset, format=stored.form
    )
    planes = [rows.crop(0, i * stored.height, stored.width, stored.height) for i in range(stored.planes)]
    image = planes[0].bandjoin(planes[1:]) if len(planes) > 1 else planes[0]
    image = image.byteswap().flipver()
    unsigned, offset = _UNSIGNED.get(stored.form, ("", 0))
    if (stored.scale, stored.zero) == (1, offset) and unsigned:
        image = (image + offset).cast(unsigned)
    elif (stored.scale, stored.zero) != (1, 0):
        image = image * stored.scale + stored.zero
    blank = None if stored.blank is None else stored.blank * stored.scale + stored.zero
    return image.copy(interpretation="srgb" if image.bands == 3 else "b-w"), blank

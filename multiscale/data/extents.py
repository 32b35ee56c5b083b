"""How much of a scene a picture shows, from what is known of it elsewhere: a table, its EXIF data, its pixel size, its name.

The extent of a picture is the side of the scene that its shorter side shows, in any one unit.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tifffile
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.reading import kind_of, parsed, read_bytes, short_reason
from multiscale.data.pictures import Picture, shorter_side
from multiscale.data.source import listed
from multiscale.data.vips import without_size_limit
from multiscale.data.xml import parse_xml

TABLE_BYTES = 1 << 26
COLUMNS = frozenset({"file", "extent"})
"""Of a table, among others."""
_SEPARATORS = ",;\t"
FILM_DIAGONAL_MM = math.hypot(36, 24)
"""EXIF's focal length "in 35 mm film" has the picture's angle of view along the diagonal."""
_EXIF, _GPS = 0x8769, 0x8825
_FOCAL_LENGTH_35MM, _SUBJECT_DISTANCE, _GPS_ALTITUDE, _BELOW_SEA = 0xA405, 0x9206, 6, 5
_PIXEL_SCALE, _TRANSFORMATION, _GEO_KEYS = 33550, 34264, 34735
_MODEL_TYPE, _LINEAR_UNIT = 1024, 3076
_MICROMETRES = {
    "pm": 1e-6,
    "Å": 1e-4,
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "km": 1e9,
}


class Unknown(ValueError):
    """Why a picture's extent is not known, as the end of "FILE ..."."""


class Measured(NamedTuple):
    """An extent, and what its unit is called: those of one set must agree."""

    extent: float
    unit: str


def read_extents(how: str, pictures: Sequence[Picture], folder: Path) -> list[float]:
    """The extent of each picture.

    Args:
        how: ``exif``, ``geotiff`` or ``ome``; the path of a table, a CSV file with columns ``file`` and ``extent``; or else a
            regular expression that finds the extent in a file's name, as its group ``extent`` or its first.
        pictures: Files in or below ``folder``.
        folder: That was searched.

    Raises:
        UserError: names all pictures without an extent; a table or an expression that is none; units that differ.
    """
    measure = _measure(how, folder)
    found: list[Measured] = []
    problems: list[str] = []
    for picture in pictures:
        try:
            measured = measure(picture)
            if not (math.isfinite(measured.extent) and measured.extent > 0):
                raise Unknown(f"has an extent of {measured.extent:g}, which must be above 0")
            found.append(measured)
        except Unknown as error:
            problems.append(f"{_relative(picture.path, folder)} {error}")
    if problems:
        raise UserError(
            f"{len(problems)} of {len(pictures)} pictures have no scale by --scales {how}: {listed(problems, '; ', 100)}."
        )
    units = sorted({measured.unit for measured in found})
    if len(units) > 1:
        first = [next(p.path.name for p, m in zip(pictures, found, strict=True) if m.unit == unit) for unit in units]
        both = "; ".join(f"{name} is in {unit}" for name, unit in zip(first, units, strict=True))
        raise UserError(f"The pictures of {folder} are not measured in one unit: {both}; give a table with --scales.")
    return [measured.extent for measured in found]


def _measure(how: str, folder: Path) -> Callable[[Picture], Measured]:
    known = {"exif": _by_exif, "geotiff": _by_geotiff, "ome": _by_pixel_size}
    if how in known:
        return known[how]
    if how.lower().endswith(".csv") or Path(how).is_file():
        return _by_table(Path(how), folder)
    try:
        pattern = re.compile(how)
    except (re.error, RecursionError, OverflowError) as error:
        pattern = None
        reason = str(error)
    if pattern is None or not pattern.groups:
        reason = reason if pattern is None else "it has no group in parentheses"
        raise UserError(
            f"--scales {how} is neither exif, geotiff, ome nor a .csv file, and as a regular expression it cannot be used: "
            rf"{reason}; give such as 'alt(\d+)m'."
        )
    return lambda picture: _by_name(picture, pattern)


def _relative(path: Path, folder: Path) -> str:
    return path.name if path == folder else path.relative_to(folder).as_posix()


def _by_name(picture: Picture, pattern: re.Pattern[str]) -> Measured:
    match = pattern.search(picture.path.name)
    if match is None:
        raise Unknown("has a name that the expression does not match")
    text = match.groupdict().get("extent") or match[1]
    try:
        return Measured(float(text.replace(",", ".")), "its name's unit")
    except (AttributeError, ValueError):
        raise Unknown(f"has {text!r} in its name, which is not a number") from None


def _by_table(path: Path, folder: Path) -> Callable[[Picture], Measured]:
    names, rows, separator = _read_table(path)
    table: dict[str, str] = {}
    for row in rows:
        clean = dict(zip(names, (value.strip() for value in row), strict=False))
        name, extent = _normal(clean.get("file", "")), clean.get("extent", "")
        if "://" in name:
            raise UserError(
                f"{path} names {name}, and collect reads files; download it into {folder}, or leave it out."
            )
        if table.setdefault(name, extent) != extent:
            raise UserError(f"{path} gives {name} twice, with {table[name]} and {extent}.")
    # A point beside commas may stand between thousands: then neither is guessed at.
    decimal_comma = separator != "," and not any("." in extent for extent in table.values())

    def measure(picture: Picture) -> Measured:
        names = (_normal(_relative(picture.path, folder)), _normal(picture.path.name))
        text = next((table[name] for name in names if name in table), None)
        if text is None:
            raise Unknown("is not in the table")
        try:
            return Measured(float(text.replace(",", ".") if decimal_comma else text), "the table's unit")
        except ValueError:
            hint = "; write all extents with a decimal point, such as 1234.5" if "," in text else ""
            raise Unknown(f"has the extent {text[:40]!r}, which is not a number{hint}") from None

    return measure


def _read_table(path: Path) -> tuple[list[str], list[list[str]], str]:
    """Names of a table's columns, its rows, and what separates them: the one of ``_SEPARATORS`` that finds ``COLUMNS``."""
    text = _decoded_table(read_bytes(path, "the table", TABLE_BYTES), path)
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]

    def read(lines: Iterable[str], separator: str) -> list[list[str]]:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        return parsed(lambda: list(reader), f"{path} is not a CSV file: {{reason}}.")

    for separator in _SEPARATORS:
        names = [name.strip() for row in read([first], separator) for name in row]
        if set(names) >= COLUMNS:
            return names, read(io.StringIO(text, newline=""), separator)[1:], separator
    raise UserError(
        f"{path} has no columns file and extent in its first line, separated by commas, semicolons or tabs; "
        f"it has {' '.join(first.split())[:200] or 'none'}."
    )


def _decoded_table(data: bytes, path: Path) -> str:
    """Text as spreadsheets save it: UTF-8, with or without a mark, UTF-16 with one, or else Windows-1252."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    else:
        encodings = [] if b"\0" in data else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise UserError(
        f"Cannot read the table {path}: it is {kind_of(data) or 'no text that is known here'}, not a table; "
        "save it as CSV from the spreadsheet program, in UTF-8 if it asks."
    )


def _normal(name: str) -> str:
    """A name however its accents are written."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _by_exif(picture: Picture) -> Measured:
    """Distance times the picture's share of the film, over the focal length: a flat scene, seen straight on."""
    try:
        with without_size_limit(), Image.open(picture.path) as image:
            exif = image.getexif()
            camera, gps = exif.get_ifd(_EXIF), exif.get_ifd(_GPS)
    except Exception as error:
        raise Unknown(f"has no EXIF data that can be read ({short_reason(error)})") from error
    focal_mm = _number(camera.get(_FOCAL_LENGTH_35MM))
    distance = _number(camera.get(_SUBJECT_DISTANCE))
    if not 0 < distance < 0xFFFFFFFF:
        above = gps.get(_BELOW_SEA) not in (1, b"\x01")
        distance = _number(gps.get(_GPS_ALTITUDE)) if above else 0.0
    lacking = [
        name
        for name, value in (("35-mm focal length", focal_mm), ("subject distance or GPS altitude", distance))
        if not value > 0
    ]
    if lacking:
        raise Unknown(f"has no {' and no '.join(lacking)} in its EXIF data")
    share = shorter_side(picture) / math.hypot(picture.width, picture.height)
    return Measured(distance * FILM_DIAGONAL_MM * share / focal_mm, "metres")


def _number(value: Any) -> float:
    """A number of EXIF; 0 if there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _tags(picture: Picture, kind: str) -> tuple[dict[int, Any], str, str | None]:
    """Tags of the page of a TIFF that is read, its description, and its OME-XML."""
    try:
        with tifffile.TiffFile(picture.path) as file:
            page: Any = file.pages[picture.page]
            return {tag.code: tag.value for tag in page.tags}, page.description, file.ome_metadata
    except Exception as error:
        raise Unknown(f"is not a {kind} ({short_reason(error)})") from error


def _by_geotiff(picture: Picture) -> Measured:
    tags, _, _ = _tags(picture, "GeoTIFF")
    if _PIXEL_SCALE in tags:
        sizes = [abs(float(value)) for value in tags[_PIXEL_SCALE][:2]]
    elif _TRANSFORMATION in tags:
        matrix = [float(value) for value in tags[_TRANSFORMATION][:8]]
        sizes = [math.hypot(matrix[column], matrix[4 + column]) for column in (0, 1)]
    else:
        raise Unknown("has no pixel size of a GeoTIFF")
    keys = tags.get(_GEO_KEYS, ())
    values = {keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0}
    unit = "degrees" if values.get(_MODEL_TYPE) == 2 else f"the map's unit {values.get(_LINEAR_UNIT, 9001)}"
    pixel = sizes[0] if picture.width <= picture.height else sizes[1]
    return Measured(pixel * shorter_side(picture), unit)


def _by_pixel_size(picture: Picture) -> Measured:
    """OME's physical size, the microns per pixel that slide scanners write, or the resolution of any TIFF."""
    tags, description, ome = _tags(picture, "TIFF")
    if ome is not None:
        return Measured(_ome_pixel(ome, picture) * shorter_side(picture), "micrometres")
    if match := re.search(r"\bMPP ?= ?([\d.]{1,20})", description):
        return Measured(_number(match[1]) * shorter_side(picture), "micrometres")
    numerator, denominator = tags.get(282, (0, 1))
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(tags.get(296, 2)))
    if not numerator or unit_um is None:
        raise Unknown("has no pixel size, neither of OME nor as a resolution with a unit")
    return Measured(unit_um * denominator / numerator * shorter_side(picture), "micrometres")


def _ome_pixel(ome: str, picture: Picture) -> float:
    """Micrometres of a pixel along the shorter side."""
    axis = "X" if picture.width <= picture.height else "Y"
    try:
        root = parse_xml(ome.encode())
    except (ValueError, ElementTree.ParseError) as error:
        raise Unknown(f"has OME metadata that cannot be read ({error})") from error
    pixels = next((element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None or f"PhysicalSize{axis}" not in pixels.attrib:
        raise Unknown("has no physical size in its OME metadata")
    unit = pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")
    if unit not in _MICROMETRES:
        raise Unknown(f"has its physical size in {unit[:20]!r}; {', '.join(_MICROMETRES)} are understood")
    return _number(pixels.attrib[f"PhysicalSize{axis}"]) * _MICROMETRES[unit]

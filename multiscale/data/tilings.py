"""Pictures as tiles on a server or in a folder, by the four ways that are usual: which tiles there are, and where they lie.

Deep Zoom (``.dzi``), IIIF Image API 2 and 3 (``info.json``), Zoomify (``ImageProperties.xml``) and XYZ (an address with
:data:`PLACEHOLDERS`). Tiles are asked for where the description was found, whatever address stands in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dnnlib.errors import UserError
from dnnlib.reading import parsed
from multiscale.data.cutting import FOREIGN_OVERSAMPLING, Box, Level
from multiscale.data.xml import parse_xml

COARSEST_PX = 96
"""Levels stop at a shorter side of this or less."""
LARGEST_TILE_PX = 4096
LARGEST_SIDE_PX = 1 << 30
MAX_ZOOM = 30
PLACEHOLDERS = ("z", "x", "y", "-y", "q", "s")
"""Of an address of XYZ tiles: zoom, column, row from the top, row from the bottom (as TMS counts), quadkey (as Bing does, in
place of all these), and one of the letters a, b, c, by which servers share the work (by column and row, as Leaflet does)."""
_ZOOMIFY_GROUP = 256
_MERCATOR_LIMIT_DEG = math.degrees(math.atan(math.sinh(math.pi)))
"""Latitude at which Web Mercator's square ends."""


class Tile(NamedTuple):
    """Its address, where its first pixel lies on its level, its size, and whether it is the last of a row or column."""

    address: str
    left: int
    top: int
    width: int
    height: int
    edge: bool


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a picture lie; picklable.

    Attributes:
        kind: ``dzi``, ``iiif2``, ``iiif3``, ``zoomify`` or ``xyz``.
        base: Address that tiles' addresses begin with; of XYZ the template.
        width, height: In pixels.
        tile: Width and height of a tile without overlap.
        scales: Pixels of the picture in one of each level, finest first: powers of two.
        suffix: Of tiles, without a dot.
        overlap: Pixels that a tile shows of its neighbours.
        origin: Where the picture begins on the finest level's tiles, in pixels; a multiple of every scale.
        rounds_down: Whether sizes of levels are halved down, not up.
        zoom: Of XYZ: z of the finest level.
        query: That was behind the address of the description, with its question mark.
    """

    kind: str
    base: str
    width: int
    height: int
    tile: tuple[int, int]
    scales: tuple[int, ...]
    suffix: str = "jpg"
    overlap: int = 0
    origin: tuple[int, int] = (0, 0)
    rounds_down: bool = False
    zoom: int = 0
    query: str = ""

    def size(self, scale: int) -> tuple[int, int]:
        """Of a level, in pixels."""
        if self.rounds_down:
            return max(self.width // scale, 1), max(self.height // scale, 1)
        return -(-self.width // scale), -(-self.height // scale)

    def levels(self) -> list[Level]:
        """Finest first."""
        return [Level(*self.size(s), float(s), FOREIGN_OVERSAMPLING if i else 0.0) for i, s in enumerate(self.scales)]

    def tiles(self, box: Box, shrink: int) -> Iterator[Tile]:
        """The tiles that a part of a level lies on; their places are in the level's own pixels, from the picture's corner."""
        scale = self.scales[shrink]
        width, height = self.size(scale)
        across, down = self.tile
        x0, y0 = self.origin[0] // scale, self.origin[1] // scale
        for row in range((box.top + y0) // down, (box.bottom - 1 + y0) // down + 1):
            for column in range((box.left + x0) // across, (box.right - 1 + x0) // across + 1):
                if self.kind == "xyz":
                    left, top, right, bottom = column * across, row * down, (column + 1) * across, (row + 1) * down
                else:
                    left = column * across - (self.overlap if column else 0)
                    top = row * down - (self.overlap if row else 0)
                    right = min((column + 1) * across + self.overlap, width)
                    bottom = min((row + 1) * down + self.overlap, height)
                edge = self.kind != "xyz" and (right == width or bottom == height)
                address = self._address(shrink, column, row, right - left, bottom - top) + self.query
                yield Tile(address, left - x0, top - y0, right - left, bottom - top, edge)

    def _address(self, shrink: int, column: int, row: int, width: int, height: int) -> str:
        scale = self.scales[shrink]
        if self.kind == "xyz":
            z = self.zoom - scale.bit_length() + 1
            values = {"z": z, "x": column, "y": row, "-y": (1 << z) - 1 - row, "s": "abc"[(column + row) % 3]}
            values["q"] = "".join(str((column >> i & 1) + 2 * (row >> i & 1)) for i in reversed(range(z)))
            return re.sub(r"\{(-?[a-z])\}", lambda match: str(values[match[1]]), self.base)
        if self.kind == "dzi":
            level = (max(self.width, self.height) - 1).bit_length() - scale.bit_length() + 1
            return f"{self.base}/{level}/{column}_{row}.{self.suffix}"
        if self.kind == "zoomify":
            return self._zoomify(scale, column, row)
        left, top = column * self.tile[0] * scale, row * self.tile[1] * scale
        across, down = min(self.tile[0] * scale, self.width - left), min(self.tile[1] * scale, self.height - top)
        region = "full" if (across, down) == (self.width, self.height) else f"{left},{top},{across},{down}"
        size = f"{width}," if self.kind == "iiif2" else f"{width},{height}"
        if region == "full" and scale == 1:
            size = "full" if self.kind == "iiif2" else "max"
        return f"{self.base}/{region}/{size}/0/default.{self.suffix}"

    def _zoomify(self, scale: int, column: int, row: int) -> str:
        """Tiles are counted from the coarsest level on, a folder for each 256."""
        counts = []
        for power in range(_zoomify_levels(self.width, self.height, self.tile[0])):
            width, height = self.size(1 << power)
            counts.append((-(-width // self.tile[0]), -(-height // self.tile[0])))
        power = scale.bit_length() - 1
        before = sum(across * down for across, down in counts[power + 1 :])
        group = (before + row * counts[power][0] + column) // _ZOOMIFY_GROUP
        return f"{self.base}/TileGroup{group}/{len(counts) - 1 - power}-{column}-{row}.{self.suffix}"


def describes_tiles(source: str) -> bool:
    """Whether a file's name or an address is that of a description of tiles."""
    path = source.partition("?")[0].partition("#")[0]
    return is_template(source) or bool(re.search(r"(\.dzi|(^|/)info\.json|(^|/)ImageProperties\.xml)$", path))


def is_template(source: str) -> bool:
    """Whether an address, or a path, is one of XYZ tiles."""
    rows = "{y}" in source or "{-y}" in source
    return ("{z}" in source and "{x}" in source and rows) or ("{q}" in source and "://" in source)


def read_description(source: str, data: bytes) -> Tiling:
    """What a description says.

    Args:
        source: Where it was found.
        data: Its bytes.

    Raises:
        UserError: it is none, or of a picture that cannot be.
    """
    path, _, query = source.partition("?")
    if path.endswith(".dzi"):
        read = _read_dzi
    elif path.endswith("ImageProperties.xml"):
        read = _read_zoomify
    else:
        read = _read_iiif
    tiling = parsed(lambda: read(path, data), f"{source} is not a description of tiles: {{reason}}.")
    _check(tiling, source)
    return replace(tiling, query=f"?{query}" if query else "")


def _check(tiling: Tiling, source: str) -> None:
    if not (min(tiling.width, tiling.height) > 0 and max(tiling.width, tiling.height) <= LARGEST_SIDE_PX):
        raise UserError(f"{source} claims {tiling.width} x {tiling.height} pixels; 1 to {LARGEST_SIDE_PX} are allowed.")
    if not (min(tiling.tile) >= 16 and max(tiling.tile) <= LARGEST_TILE_PX and 0 <= tiling.overlap <= 64):
        raise UserError(
            f"{source} claims tiles of {tiling.tile[0]} x {tiling.tile[1]} pixels with {tiling.overlap} of overlap; 16 to "
            f"{LARGEST_TILE_PX} with at most 64 are allowed."
        )
    if not re.fullmatch(r"[A-Za-z0-9]{1,8}", tiling.suffix):
        raise UserError(f"{source} names {tiling.suffix[:20]!r} as the format of its tiles; jpg, png or webp is meant.")


def _scales(width: int, height: int, most: int) -> tuple[int, ...]:
    """1, 2, 4 ... to a coarsest level of ``COARSEST_PX`` or ``most`` levels."""
    found = [1]
    while min(width, height) / found[-1] > COARSEST_PX and len(found) < most:
        found.append(2 * found[-1])
    return tuple(found)


def _read_dzi(path: str, data: bytes) -> Tiling:
    image = parse_xml(data)
    size = next((element for element in image.iter() if element.tag.rpartition("}")[2] == "Size"), None)
    if size is None:
        raise ValueError("it has no element Size")
    width, height, tile = int(size.attrib["Width"]), int(size.attrib["Height"]), int(image.attrib["TileSize"])
    levels = (max(width, height, 1) - 1).bit_length() + 1
    base = path.removesuffix(".dzi") + "_files"
    scales = _scales(width, height, levels)
    return Tiling(
        "dzi", base, width, height, (tile, tile), scales, image.attrib["Format"], int(image.attrib["Overlap"])
    )


def _zoomify_levels(width: int, height: int, tile: int) -> int:
    """Levels until one tile holds all."""
    count = 1
    while max(width, height) > tile << (count - 1):
        count += 1
    return count


def _read_zoomify(path: str, data: bytes) -> Tiling:
    facts = parse_xml(data).attrib
    width, height, tile = int(facts["WIDTH"]), int(facts["HEIGHT"]), int(facts["TILESIZE"])
    if not 16 <= tile <= LARGEST_TILE_PX:
        raise ValueError(f"its tiles have {tile} pixels")
    scales = _scales(width, height, _zoomify_levels(width, height, tile))
    base = path.rpartition("/")[0] or "."
    tilings = [
        Tiling("zoomify", base, width, height, (tile, tile), scales, rounds_down=rounds_down)
        for rounds_down in (False, True)
    ]
    counted = [_zoomify_count(tiling) for tiling in tilings]
    if int(facts["NUMTILES"]) not in counted:
        raise ValueError(f"it counts {facts['NUMTILES']} tiles, and {counted[0]} would be right")
    return tilings[counted.index(int(facts["NUMTILES"]))]


def _zoomify_count(tiling: Tiling) -> int:
    total = 0
    for power in range(_zoomify_levels(tiling.width, tiling.height, tiling.tile[0])):
        width, height = tiling.size(1 << power)
        total += -(-width // tiling.tile[0]) * -(-height // tiling.tile[0])
    return total


def _read_iiif(path: str, data: bytes) -> Tiling:
    info = json.loads(data)
    context = json.dumps(info["@context"])
    version = 2 if "iiif.io/api/image/2" in context else 3 if "iiif.io/api/image/3" in context else 0
    if not version:
        raise ValueError("it is of neither IIIF Image API 2 nor 3")
    width, height = int(info["width"]), int(info["height"])
    level0 = "level0" in json.dumps(info.get("profile", ""))
    tiles = info.get("tiles") or ([] if level0 else [{"width": 512, "scaleFactors": [1 << i for i in range(24)]}])
    if not tiles:
        raise ValueError("it offers no tiles")
    tile = (int(tiles[0]["width"]), int(tiles[0].get("height") or tiles[0]["width"]))
    factors = {int(factor) for factor in tiles[0]["scaleFactors"]}
    scales = _scales(width, height, MAX_ZOOM)
    scales = tuple(scale for scale in scales if scale in factors)
    if not scales or scales[0] != 1:
        raise ValueError("its tiles do not have its own pixels (scale factor 1)")
    return Tiling(f"iiif{version}", path.rpartition("/")[0] or ".", width, height, tile, scales, _iiif_format(info))


def _iiif_format(info: dict[str, Any]) -> str:
    """PNG where the service prefers or, being one of level 0, has nothing else; else JPEG, which all have."""
    profile = info.get("profile")
    extra = profile[1] if isinstance(profile, list) and len(profile) > 1 and isinstance(profile[1], dict) else {}
    preferred = info.get("preferredFormats") or extra.get("formats") or []
    return next((str(name) for name in preferred if name in ("png", "jpg", "webp")), "jpg")


def xyz_tiling(
    template: str, tile_px: int, zooms: tuple[int, int], bounds: tuple[float, float, float, float] | None
) -> Tiling:
    """Tiles of a map.

    Args:
        template: Address with ``{z}``, ``{x}`` and ``{y}``, or others of ``PLACEHOLDERS``.
        tile_px: Side of a tile.
        zooms: Lowest and highest z.
        bounds: West, south, east, north in degrees, by Web Mercator; None: all.

    Raises:
        UserError: bounds that hold nothing; a placeholder of another name; zoom 0 of quadkeys, which have none.
    """
    low, high = zooms
    others = sorted(set(re.findall(r"\{([^{}]*)\}", template)) - set(PLACEHOLDERS))
    if others:
        raise UserError(
            f"{template} has {{{others[0]}}}; of XYZ tiles {', '.join(f'{{{name}}}' for name in PLACEHOLDERS)} are "
            "understood: replace others by what they stand for."
        )
    if "{q}" in template and low == 0:
        raise UserError(f"{template} has quadkeys, which begin at zoom 1; give --zooms 1-{max(high, 1)}.")
    side = tile_px << high
    box = [0.0, 0.0, float(side), float(side)]
    if bounds is not None:
        west, south, east, north = bounds
        box = [side * x for x in ((west + 180) / 360, _mercator(north), (east + 180) / 360, _mercator(south))]
    scales = _scales(int(box[2] - box[0]), int(box[3] - box[1]), high - low + 1)
    step = scales[-1]
    left, top = (-(-math.floor(value) // step) * step for value in box[:2])
    width, height = math.floor(box[2]) // step * step - left, math.floor(box[3]) // step * step - top
    if width <= 0 or height <= 0:
        raise UserError(f"--bounds {','.join(f'{value:g}' for value in bounds or ())} hold no pixel at zoom {high}.")
    return Tiling("xyz", template, width, height, (tile_px, tile_px), scales, origin=(left, top), zoom=high)


def _mercator(latitude: float) -> float:
    """Place from the north edge of Web Mercator's square (0) to the south one (1)."""
    angle = math.radians(min(max(latitude, -_MERCATOR_LIMIT_DEG), _MERCATOR_LIMIT_DEG))
    return (1 - math.asinh(math.tan(angle)) / math.pi) / 2


def parse_zooms(text: str | None) -> tuple[int, int]:
    """``"0-12"`` -> (0, 12); UserError otherwise."""
    match = re.fullmatch(r"(\d{1,2})-(\d{1,2})", text or "")
    low, high = (int(match[1]), int(match[2])) if match else (1, 0)
    if not low <= high <= MAX_ZOOM:
        given = "An address of XYZ tiles needs --zooms" if text is None else f"--zooms {text} is not allowed"
        raise UserError(f"{given}; give the lowest and highest z to use, such as 0-12.")
    return low, high


def parse_bounds(text: str | None) -> tuple[float, float, float, float] | None:
    """``"5.9,45.8,10.5,47.8"`` -> west, south, east, north; UserError otherwise."""
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        west = south = east = north = math.nan
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise UserError(
            f"--bounds {text} is not allowed; give degrees west,south,east,north, such as 5.9,45.8,10.5,47.8."
        )
    return west, south, east, north

"""A world as a pyramid of tiles, for viewers of gigapixel images: XYZ tiles, Deep Zoom, IIIF Image API 3, TIFF.

Level l shows the whole world on 2^l x 2^l pixels; the finest level is that of the model's finest pixels, N 2^S a side. Every
tile of every level is rendered by the model (it is not an average of finer ones), and the tiles of a level fit without a seam.

Tiles of Deep Zoom also show their neighbours' nearest pixels (``OVERLAP_PX``): a viewer that enlarges each tile by itself would
otherwise have nothing to interpolate with at its border, and a crease would show there. XYZ and IIIF have no such thing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from multiscale.rendering.enlarging import enlarged, finest_pixels
from multiscale.rendering.files import claimed, encode_png, tiff_layout, tiff_tags
from multiscale.rendering.renderer import EXTRAPOLATE, Renderer
from multiscale.rendering.worlds import World
from multiscale.view import Region

TILE_PX = 256
OVERLAP_PX = 1
"""Pixels of each neighbour in a tile of Deep Zoom."""

Advance = Callable[[int], object]
"""Told how many more tiles are done."""


@dataclass(frozen=True)
class Block:
    """Neighbouring tiles of one level of Deep Zoom, which are rendered as one picture and cut from it.

    Args:
        level: Of the tiles.
        columns, rows: Of the tiles.
        region: The picture: the tiles and at least ``OVERLAP_PX`` of their neighbours.
        left, top: Column and row of its first pixel on the level.
        tile_px: Side of a tile without overlap.
    """

    level: int
    columns: range
    rows: range
    region: Region
    left: int
    top: int
    tile_px: int

    def tile(self, pixels: np.ndarray, column: int, row: int) -> np.ndarray:
        """Cut a tile with its overlap, which ends at the world's edge: of the region's pixels [H, W, C]."""
        x, y = column * self.tile_px - self.left, row * self.tile_px - self.top
        end = self.tile_px + OVERLAP_PX
        return pixels[max(y - OVERLAP_PX, 0) : y + end, max(x - OVERLAP_PX, 0) : x + end]


@dataclass(frozen=True)
class Pyramid:
    """The levels and tiles of one world.

    Args:
        renderer: Of the model.
        world: Which of its worlds.
        truncation_psi: Truncation of the latents; 1 for none.
    """

    renderer: Renderer
    world: World
    truncation_psi: float = 1.0

    @property
    def side(self) -> int:
        """Pixels a side of the finest level, a power of two."""
        return self.renderer.world_px

    @property
    def tile_px(self) -> int:
        """Side of a tile; 256, or less for a model whose whole world is smaller."""
        return min(TILE_PX, self.side)

    @property
    def finest(self) -> int:
        """The finest level: ``side`` = 2^finest."""
        return self.side.bit_length() - 1

    @property
    def max_level(self) -> int:
        """Largest z of XYZ tiles; at z = 0 one tile shows the whole world."""
        return self.finest - (self.tile_px.bit_length() - 1)

    def tile(self, z: int, x: int, y: int, *, cancelled: Callable[[], bool] | None = None) -> np.ndarray:
        """XYZ tile in column x and row y of 2^z: uint8 [tile_px, tile_px, C].

        Raises:
            UserError: there is no such tile.
        """
        if not (0 <= z <= self.max_level and 0 <= x < 2**z and 0 <= y < 2**z):
            raise UserError(
                f"There is no tile {z}/{x}/{y}; z goes from 0 to {self.max_level}, x and y from 0 to 2^z - 1, tiles are "
                f"{self.tile_px} pixels a side."
            )
        region = self.region(z + self.finest - self.max_level, x, y)
        return self.renderer.pixels(self.world, region, self.truncation_psi, cancelled=cancelled)

    def region(self, level: int, column: int, row: int) -> Region:
        """What a tile of a level shows without overlap; :class:`UserError` if there is no such tile."""
        side = 2**level if 0 <= level <= self.finest else 0
        x, y = column * self.tile_px, row * self.tile_px
        if not (0 <= x < side and 0 <= y < side):
            raise UserError(
                f"There is no tile {column}, {row} on level {level}; levels go from 0 to {self.finest}, level l is 2^l pixels "
                f"a side, tiles are {self.tile_px}."
            )
        return Region.of_world(side).part(x, y, min(self.tile_px, side), min(self.tile_px, side))

    def block(self, level: int, columns: range, rows: range) -> Block:
        """Tiles of Deep Zoom; :class:`UserError` if there are no such tiles."""
        for column, row in ((columns[0], rows[0]), (columns[-1], rows[-1])):
            self.region(level, column, row)
        side, step = 2**level, self.renderer.generator.plan.step
        border = -(-OVERLAP_PX // step) * step  # blocks share one grid of samples, and differ in rounding only
        left, top = (max(tiles[0] * self.tile_px - border, 0) for tiles in (columns, rows))
        right, bottom = (min((tiles[-1] + 1) * self.tile_px + border, side) for tiles in (columns, rows))
        region = Region.of_world(side).part(left, top, right - left, bottom - top)
        return Block(level, columns, rows, region, left, top, self.tile_px)

    def blocks(self) -> Iterator[Block]:
        """Every tile of Deep Zoom, coarse to fine, as many at once as the renderer evaluates at a time."""
        most = max(self.renderer.largest_tile_px // self.tile_px, 1)
        for level in range(self.finest + 1):
            across = self._across(level)
            parts = [range(i, min(i + most, across)) for i in range(0, across, most)]
            yield from (self.block(level, columns, rows) for rows in parts for columns in parts)

    @property
    def tiles(self) -> int:
        """The number of Deep Zoom's tiles."""
        return sum(self._across(level) ** 2 for level in range(self.finest + 1))

    def _across(self, level: int) -> int:
        return max(2**level // self.tile_px, 1)

    def dzi(self) -> str:
        """Deep Zoom's description, XML."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" '
            f'Format="png" Overlap="{OVERLAP_PX}" TileSize="{self.tile_px}">\n'
            f'  <Size Width="{self.side}" Height="{self.side}"/>\n</Image>\n'
        )

    def iiif_info(self, url: str) -> dict[str, Any]:
        """``info.json`` of a IIIF Image API 3 service of level 0 at ``url`` (without ``/info.json``)."""
        small = [2**level for level in range(self.tile_px.bit_length())]
        return {
            "@context": "http://iiif.io/api/image/3/context.json",
            "id": url,
            "type": "ImageService3",
            "protocol": "http://iiif.io/api/image",
            "profile": "level0",
            "width": self.side,
            "height": self.side,
            "maxWidth": self.tile_px,
            "sizes": [{"width": side, "height": side} for side in small],
            "tiles": [{"width": self.tile_px, "scaleFactors": [2**i for i in range(self.max_level + 1)]}],
            "preferredFormats": ["png"],
            "extraFormats": ["png"],
        }

    def iiif_region(self, region: str, size: str) -> Region:
        """What the region and size of a IIIF request mean: a tile, or the whole world on one or less; ``max``: on one.

        Raises:
            UserError: it is neither; level 0 has no others.
        """
        box = [0, 0, self.side, self.side] if region == "full" else _integers(region, 4)
        wanted = [self.tile_px] * 2 if size == "max" else _integers(size, 2)
        if box and wanted and wanted[0] and box[2] == box[3] and wanted[0] == wanted[1]:
            x, y, width, _ = box
            factor, rest = divmod(width, wanted[0])
            level = self.finest - (factor.bit_length() - 1)
            across = self.tile_px * factor
            exact = not rest and factor.bit_count() == 1 and x % across == 0 and y % across == 0
            if exact and wanted[0] == min(self.tile_px, 2**level):
                return self.region(level, x // across, y // across)
        raise UserError(
            f"There is no image {region[:60]}/{size[:60]} here; info.json lists the tiles and sizes that there are."
        )


def write_deep_zoom(path: Path, pyramid: Pyramid, facts: dict[str, Any], advance: Advance) -> None:
    """Write ``NAME.dzi`` and ``NAME_files/LEVEL/COLUMN_ROW.png``; what an interrupted command has left is kept.

    Args:
        path: Of the ``.dzi`` file, which is written last.
        pyramid: What is written.
        facts: World, truncation and network: all that the tiles follow from.
        advance: Told of each tile.

    Raises:
        UserError: the folder holds tiles of something else, or cannot be written.
    """
    claim(path, pyramid, facts)
    folder = path.with_name(f"{path.stem}_files")
    for block in pyramid.blocks():
        places = [(column, row) for row in block.rows for column in block.columns]
        files = {place: folder / str(block.level) / "{}_{}.png".format(*place) for place in places}
        missing = {place for place, file in files.items() if not file.exists()}
        if missing:
            pixels = pyramid.renderer.pixels(pyramid.world, block.region, pyramid.truncation_psi)
        for place, file in files.items():
            if place in missing:
                tile = encode_png(block.tile(pixels, *place))
                with atomic_write(file) as stream:
                    stream.write(tile)
            advance(1)
    with atomic_write(path, "w") as stream:
        stream.write(pyramid.dzi())


def claim(path: Path, pyramid: Pyramid, facts: dict[str, Any]) -> None:
    """Have the folder of :func:`write_deep_zoom` say what its tiles follow from; UserError if it holds others."""
    folder = path.with_name(f"{path.stem}_files")
    made = {**facts, "side": pyramid.side, "tile": pyramid.tile_px}
    text = json.dumps({**made, "overlap": OVERLAP_PX}, indent=1)
    found = claimed(folder, text)
    if found == json.dumps(made, indent=1):
        raise UserError(
            f"{folder} holds tiles without overlap, as an earlier version wrote them, and tiles of both kinds do not fit; "
            f"give another name, or remove it and {path}."
        )
    if found != text:
        raise UserError(
            f"{folder} holds other tiles than these (another world or network); give another name, or remove it and {path}."
        )


def tiff_levels(region: Region) -> list[Region]:
    """The region, then on half as many pixels, and so on until it fits a tile."""
    levels = [region]
    while max(levels[-1].width, levels[-1].height) > TILE_PX:
        last = levels[-1]
        width, height = max(last.width // 2, 1), max(last.height // 2, 1)
        levels.append(Region(left=region.left, top=region.top, pitch=2 * last.pitch, width=width, height=height))
    return levels


def tiff_tiles(region: Region) -> int:
    """Tiles of all levels."""
    return sum(-(-level.width // TILE_PX) * -(-level.height // TILE_PX) for level in tiff_levels(region))


def check_tiff(renderer: Renderer, region: Region, *, extrapolate: bool, otherwise: str = EXTRAPOLATE) -> None:
    """UserError if :func:`write_tiff` would refuse the region; ``extrapolate``: or enlarge, ``otherwise``: what it advises."""
    for level in tiff_levels(region):
        renderer.check(level, extrapolate=extrapolate, otherwise=otherwise)


def write_tiff(
    path: Path,
    renderer: Renderer,
    world: World,
    region: Region,
    truncation_psi: float,
    facts: dict[str, Any],
    *,
    bits: int,
    extrapolate: bool = False,
    enlarge: bool = False,
    advance: Advance,
) -> None:
    """Write a tiled, pyramidal BigTIFF: pages of half the size each, as libvips, GDAL, QGIS and OpenSlide read them.

    Args:
        path: The file.
        renderer, world, region, truncation_psi, extrapolate: As for :meth:`Renderer.image`.
        facts: What the image shows; kept as JSON in the first page's description.
        bits: 8 or 16 a channel.
        enlarge: Where a level is finer than the model, enlarge the model's finest pixels.
        advance: Told of each tile.
    """
    check_tiff(renderer, region, extrapolate=extrapolate or enlarge)
    colour = renderer.generator.config.img_channels == 3

    def source(band: Region) -> Callable[[Region], np.ndarray]:
        """The pixels of parts of some rows."""
        if not (enlarge and renderer.extrapolation(band) > 1):
            return lambda part: renderer.pixels(world, part, truncation_psi, bits=bits, extrapolate=extrapolate)
        grid = finest_pixels(renderer, band)
        finest = renderer.pixels(world, grid, truncation_psi, bits=bits)
        return lambda part: enlarged(finest, grid, part)

    def tiles(level: Region) -> Iterator[np.ndarray]:
        rows = TILE_PX * int(renderer.extrapolation(level))  # enlarged from about TILE_PX rows
        for top in range(0, level.height, rows):
            band = level.part(0, top, level.width, min(rows, level.height - top))
            pixels = source(band)
            for y in range(0, band.height, TILE_PX):
                for x in range(0, band.width, TILE_PX):
                    part = band.part(x, y, min(TILE_PX, band.width - x), min(TILE_PX, band.height - y))
                    below, right = TILE_PX - part.height, TILE_PX - part.width
                    tile = np.pad(pixels(part), ((0, below), (0, right), (0, 0)))
                    advance(1)
                    yield tile

    with atomic_write(path, "w+b") as stream, tifffile.TiffWriter(stream, bigtiff=True) as writer:
        for i, level in enumerate(tiff_levels(region)):
            writer.write(
                tiles(level),
                shape=(level.height, level.width, 3) if colour else (level.height, level.width),
                dtype=np.uint16 if bits == 16 else np.uint8,
                tile=(TILE_PX, TILE_PX),
                subfiletype=1 if i else 0,
                **tiff_layout(colour=colour),
                **({} if i else tiff_tags(facts, colour=colour)),
            )


def _integers(text: str, count: int) -> list[int]:
    """``"1,2"`` -> [1, 2]; an empty list if it is not ``count`` numbers of at most 10 digits."""
    parts = text.split(",")
    return [int(part) for part in parts] if len(parts) == count and all(map(_NUMBER.fullmatch, parts)) else []


_NUMBER = re.compile(r"[0-9]{1,10}")

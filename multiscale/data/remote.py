"""Pictures that lie as tiles on servers: what patches need is fetched before they are cut, and more only if one is empty."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.files import cache_folder
from dnnlib.progress import progress_bar
from dnnlib.reading import regular_size
from dnnlib.signals import says_when_ended
from multiscale.data.cutting import Box, Level, Source
from multiscale.data.fetching import Fetcher, Wanted, Web, fetch_description, is_address
from multiscale.data.tilings import (
    LARGEST_TILE_PX,
    Tile,
    Tiling,
    describes_tiles,
    is_template,
    parse_bounds,
    parse_zooms,
    read_description,
    xyz_tiling,
)
from multiscale.data.vips import Reading, Unreadable, decode
from multiscale.data.xml import XML_BYTES

SAMPLES = 8
"""Tiles that are looked at first: for their size in bytes, and whether they have colour."""
_DECODED_SHARE = 16
"""Of the memory, for tiles that a process keeps decoded."""


@dataclass(frozen=True)
class Tiles:
    """How the tiles of a picture are fetched.

    Attributes:
        connections: Requests at a time.
        rate: Requests a second, at most; 0: no bound.
        zooms: Of XYZ: lowest and highest z, such as ``"0-12"``.
        bounds: Of XYZ: ``"west,south,east,north"`` in degrees; None: all.
    """

    connections: int = 4
    rate: float = 20.0
    zooms: str | None = None
    bounds: str | None = None


def open_tiles(source: str, reading: Reading, tiles: Tiles) -> RemotePicture:
    """Read a description of tiles; UserError as :func:`open_remote`, or for an option that is wrong."""
    zooms = parse_zooms(tiles.zooms) if is_template(source) else None
    web = Web(tiles.connections, tiles.rate, reading.cache or cache_folder(), reading.cache_bytes)
    return open_remote(source, web, zooms, parse_bounds(tiles.bounds))


class RemotePicture(NamedTuple):
    """A picture as tiles; picklable.

    Attributes:
        name: Its address.
        tiling: Where its tiles lie.
        web: How they are fetched.
        version: Of the picture: tiles of another are not mixed with them.
        grey: Whether it has no colour.
    """

    name: str
    tiling: Tiling
    web: Web
    version: str
    grey: bool = False

    @property
    def with_empty(self) -> bool:
        """Whether parts of it may be empty, which no description says."""
        return True

    @property
    def width(self) -> int:
        """In pixels."""
        return self.tiling.width

    @property
    def height(self) -> int:
        """In pixels."""
        return self.tiling.height

    def open(self, reading: Reading) -> Source:
        """The source of patches."""
        return RemoteSource(self, reading)


def is_remote(source: str) -> bool:
    """Whether a source is a picture as tiles: an address of the web, or the file of a description.

    Raises:
        UserError: an address of another scheme than http or https.
    """
    return is_address(source) or describes_tiles(source)


def check_no_tiles(folder: Path) -> None:
    """Refuse a folder that holds tiles, or is that of a Deep Zoom: each would be taken for a photograph.

    Raises:
        UserError: names the description of the tiles.
    """
    below = [path for path in sorted(folder.glob("*.dzi")) if path.with_name(f"{path.stem}_files").is_dir()]
    beside = [folder.parent / f"{folder.name.removesuffix('_files')}.dzi"] if folder.name.endswith("_files") else []
    for path in (folder / "info.json", folder / "ImageProperties.xml", *below, *beside):
        with contextlib.suppress(UserError, OSError):
            read_description(str(path), _read_file(path))
            break
    else:
        return
    raise UserError(f"{folder} holds one picture as tiles, which are no photographs; give --source {path}.")


def open_remote(
    source: str, web: Web, zooms: tuple[int, int] | None, bounds: tuple[float, float, float, float] | None
) -> RemotePicture:
    """Read the description of a picture as tiles; of XYZ tiles, one of them.

    Args:
        source: ``.../info.json``, ``.../NAME.dzi``, ``.../ImageProperties.xml`` or an address with ``{z}``, ``{x}``, ``{y}``
            (:data:`multiscale.data.tilings.PLACEHOLDERS`).
        web: How servers are asked.
        zooms: Of XYZ: lowest and highest z.
        bounds: Of XYZ: west, south, east, north in degrees; None: all.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    if is_template(source):
        assert zooms is not None
        probe = xyz_tiling(source, 256, (zooms[0], zooms[0]), bounds)
        first = next(probe.tiles(Box(0, 0, 1, 1), 0))
        data = Fetcher(web, "xyz").get(
            Wanted(first.address, LARGEST_TILE_PX // 2, LARGEST_TILE_PX // 2, LARGEST_TILE_PX // 2)
        )
        with Image.open(io.BytesIO(data)) as tile:
            side, height = tile.size
        if side != height or side < 16:
            raise UserError(f"{first.address} has {side} x {height} pixels; tiles must be square, of 16 or more.")
        return RemotePicture(source, xyz_tiling(source, side, zooms, bounds), web, "xyz")
    if not describes_tiles(source):
        raise UserError(
            f"{source} is not an address of tiles; give one that ends in /info.json (IIIF), .dzi (Deep Zoom) or "
            "/ImageProperties.xml (Zoomify), or has {z}, {x} and {y}, {-y} or {q} in it (XYZ). Download a single picture first."
        )
    data = fetch_description(source) if is_address(source) else _read_file(Path(source))
    return RemotePicture(source, read_description(source, data), web, hashlib.sha256(data).hexdigest())


def _read_file(path: Path) -> bytes:
    if regular_size(path, "the description of tiles") > XML_BYTES:
        raise UserError(f"{path} is not a description of tiles: it has more than {XML_BYTES >> 20} MB.")
    return path.read_bytes()


def _wanted(tiling: Tiling, tile: Tile) -> Wanted:
    """Sizes at an edge are rounded by some one way and by others the other."""
    slack = 1 if tile.edge and tiling.kind in ("zoomify", "iiif2", "iiif3") else 0
    return Wanted(tile.address, tile.width, tile.height, slack)


def tiles_of(picture: RemotePicture, parts: Iterable[tuple[Box, int]]) -> list[Wanted]:
    """The tiles that parts of levels lie on, each once, in the order that they come up."""
    found: dict[str, Wanted] = {}
    for box, shrink in parts:
        for tile in picture.tiling.tiles(box, shrink):
            found.setdefault(tile.address, _wanted(picture.tiling, tile))
    return list(found.values())


def fetch_tiles(picture: RemotePicture, tiles: Sequence[Wanted], *, dry_run: bool) -> RemotePicture:
    """Fetch what is not there, or say how much it is.

    Args:
        picture: Whose.
        tiles: All that patches need.
        dry_run: Fetch no more than a sample, and print how many tiles and bytes there are.

    Returns:
        The picture, with ``grey`` as the sample is.

    Raises:
        UserError: a tile is not given or wrong; all do not fit the cache.
    """
    fetcher = Fetcher(picture.web, picture.version)
    sample = [tiles[i] for i in sorted({round(i) for i in np.linspace(0, len(tiles) - 1, SAMPLES)})]
    fetcher.fetch([tile for tile in sample if fetcher.kept(tile) is None])
    looked_at = [fetcher.get(tile) for tile in sample]
    is_local = not is_address(picture.name)
    missing = [] if is_local else [tile for tile in tiles if fetcher.kept(tile) is None]
    mean = 0 if is_local else sum(map(len, looked_at)) / len(looked_at)
    there, size = len(tiles) - len(missing), len(missing) * mean / 1e6
    text = f"{len(tiles):,} tiles, {there:,} there, some {size:,.1f} MB to fetch"
    if len(tiles) * mean > picture.web.cache_bytes / 2:
        raise UserError(
            f"{picture.name}: {text}; the cache must hold twice as much as all of them: give --cache "
            f"{2.1 * len(tiles) * mean / 1e9:.1f} or more, or fewer --counts."
        )
    if dry_run:
        print(f"{picture.name}: {picture.width} x {picture.height} pixels, {text}")
    elif missing:
        with says_when_ended(), progress_bar(total=len(missing), unit="tile", desc="fetching") as bar:
            fetcher.fetch(missing, lambda _: bar.update())
    return picture._replace(grey=all(_is_grey(data) for data in looked_at))


def _is_grey(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode in ("1", "L", "LA", "I", "I;16")


class RemoteSource:
    """Reads tiles that were fetched, and fetches others when they are asked for."""

    with_empty = True

    def __init__(self, picture: RemotePicture, reading: Reading) -> None:
        self._picture, self._reading = picture, reading
        self._fetcher = Fetcher(picture.web, picture.version)
        self._decoded: OrderedDict[str, np.ndarray] = OrderedDict()

    @functools.cached_property
    def levels(self) -> Sequence[Level]:
        """See :class:`multiscale.data.cutting.Source`."""
        return self._picture.tiling.levels()

    def read(self, box: Box, shrink: int) -> np.ndarray:
        """See :class:`multiscale.data.cutting.Source`."""
        bands = (1 if self._picture.grey else 3) + 1
        result = np.zeros((box.bottom - box.top, box.right - box.left, bands), np.uint8)
        for tile in self._picture.tiling.tiles(box, shrink):
            pixels = self._pixels(tile)
            left, top = max(tile.left, box.left), max(tile.top, box.top)
            right, bottom = min(tile.left + tile.width, box.right), min(tile.top + tile.height, box.bottom)
            part = pixels[top - tile.top : bottom - tile.top, left - tile.left : right - tile.left]
            result[top - box.top : bottom - box.top, left - box.left : right - box.left] = part
        return result

    def describe(self) -> str:
        """Its address."""
        return self._picture.name

    def _pixels(self, tile: Tile) -> np.ndarray:
        if tile.address in self._decoded:
            self._decoded.move_to_end(tile.address)
            return self._decoded[tile.address]
        wanted = _wanted(self._picture.tiling, tile)
        try:
            pixels = decode(self._fetcher.get(wanted))
        except Unreadable as error:
            raise UserError(f"{tile.address} {error}.") from error
        if max(abs(pixels.shape[1] - tile.width), abs(pixels.shape[0] - tile.height)) > wanted.slack:
            raise UserError(
                f"{tile.address} has {pixels.shape[1]} x {pixels.shape[0]} pixels, and {tile.width} x {tile.height} are right."
            )
        if self._picture.grey and pixels.shape[2] == 4:
            raise UserError(f"{tile.address} has colours, and the {SAMPLES} tiles that were looked at first have none.")
        if not self._picture.grey and pixels.shape[2] == 2:
            pixels = pixels[..., [0, 0, 0, 1]]
        short = ((0, max(tile.height - pixels.shape[0], 0)), (0, max(tile.width - pixels.shape[1], 0)), (0, 0))
        pixels = np.pad(pixels, short, mode="edge")[: tile.height, : tile.width]
        self._decoded[tile.address] = pixels
        kept = sum(array.nbytes for array in self._decoded.values())
        while kept > self._reading.memory // _DECODED_SHARE and len(self._decoded) > 1:
            kept -= self._decoded.popitem(last=False)[1].nbytes
        return pixels

"""Pictures in files as sources of patches, however large: in memory, read where they lie, or from levels made once and kept.

A picture that is small is decoded by each process that cuts from it. Of any other, the levels are kept in the cache folder as
uncompressed tiles, made once and streamed: those that its file has are decoded, others are halves, and the first is the picture
itself, unless parts of the file can be read without the rest (a tiled TIFF). What is kept is bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dnnlib.errors import UserError
from dnnlib.files import cache_folder, new_temporary_folder, remove_abandoned
from multiscale.data.cutting import FOREIGN_OVERSAMPLING, OVERSAMPLING, Box, Level, Source
from multiscale.data.vips import (
    MOST_PAGES,
    NUMBERS,
    Colours,
    Opened,
    Reading,
    Unreadable,
    colours_of,
    decoded,
    field,
    halved,
    has_empty,
    is_grey,
    is_reduced,
    library,
    open_image,
    reported,
    to_srgb,
)

FORMAT = 2
"""Part of every key of the cache; to be raised when levels are to look otherwise."""
COARSEST_PX = 96
"""Halving stops at a shorter side of this or less: a patch of 16 pixels that shows all needs 48."""
ALWAYS_HELD_BYTES = 32 * 2**20
"""Decoded, of a picture so small that every process decodes it for itself."""
TILE_PX = 256
COMPARED_PX, ALIKE = 1024, 0.03
"""Side of the parts of a picture that are compared with its levels, and by how much of black to white these may differ."""
LOOKED_AT, LOOKED_AT_PX = 8, 256
"""Parts a side of a picture, and their sides, that are looked at for how bright it is."""
_FETCHED_SHARE = 32
"""Of the memory, that a process fetches before it lets go of decoded tiles."""


class Place(Protocol):
    """What is known of a picture before a patch is cut from it; picklable."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def grey(self) -> bool: ...
    @property
    def with_empty(self) -> bool: ...
    @property
    def name(self) -> str: ...
    def open(self, reading: Reading) -> Source: ...


def shorter_side(place: Place) -> int:
    """L in pixels."""
    return min(place.width, place.height)


def depth_of(place: Place, resolution: int) -> float:
    """s at which a patch has a picture's own pixels: log2(L/N)."""
    return math.log2(shorter_side(place) / resolution)


def octaves_at(place: Place, resolution: int) -> int:
    """Whole octaves of a picture: floor(log2(L/N)), at least 0."""
    return max(0, (shorter_side(place) // resolution).bit_length() - 1)


class Own(NamedTuple):
    """A level that a file has itself: its size in pixels, upright, how often it is halved, and how to open it."""

    width: int
    height: int
    halvings: int
    options: tuple[tuple[str, int], ...]


class Picture(NamedTuple):
    """A file that can be used.

    Attributes:
        path: Of the file.
        width, height: In pixels, upright.
        grey: Whether it has no colour.
        with_empty: Whether parts of it may be empty.
        colours: How its numbers become colours.
        kind: Of its numbers: ``uchar``, ``ushort``, ``float`` ...
        page: That is read, from 0.
        own: Levels that can be read in parts where they lie, finest first; none if the file must be decoded as a whole.
        held: Whether processes shall hold it decoded.
        most: Of 16 bits that are shown as they are, about the largest number in the parts that were looked at; else None.
        dropped: Whether a channel is left out, of which the file does not say what it is.
        alike: Pages of its size that could be meant, this one among them.
    """

    path: Path
    width: int
    height: int
    grey: bool
    with_empty: bool
    colours: Colours
    kind: str
    page: int
    own: tuple[Own, ...]
    held: bool
    most: float | None = None
    dropped: bool = False
    alike: int = 1

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path)

    @property
    def bands(self) -> int:
        """Numbers of a pixel as it is read."""
        return (1 if self.grey else 3) + self.with_empty

    def open(self, reading: Reading) -> Source:
        """The source of patches; raises as :func:`examine`."""
        return HeldPicture.of_file(self, reading) if self.held else StoredPicture(self, reading)


def examine(path: Path, reading: Reading, held_bytes: int, least_px: int = 0) -> Picture:
    """Look at a file, and decode all of it unless it has all levels of its own and any part can be read alone.

    Args:
        path: A regular file.
        reading: Page, memory, range.
        held_bytes: What a picture may take in a process, with its levels; for a larger one levels are made and kept.
        least_px: A picture whose shorter side is less is not decoded: it will not be used.

    Raises:
        Unreadable: it cannot be used.
        UserError: no regular file; no room for the levels.
    """
    opened = open_image(path, reading)
    image, colours = opened.image, colours_of(path, opened, reading)
    with reported(path):
        upright = to_srgb(image, colours)
    size = upright.width, upright.height
    own = _own_levels(path, size, opened, reading) if opened.is_random else ()
    fits = size[0] * size[1] * upright.bands * 4 // 3 <= max(held_bytes, ALWAYS_HELD_BYTES)
    picture = Picture(
        path,
        *size,
        is_grey(image),
        has_empty(image, colours),
        colours,
        str(image.format),
        opened.page,
        own,
        fits and len(own) <= 1,
        dropped=opened.dropped,
        alike=opened.alike,
    )
    if min(size) >= least_px:
        source = open_source(picture, reading)
        # A profile's colours are not in proportion to the numbers.
        if reading.value_range is None and picture.kind == "ushort" and not field(image, "icc-profile-data", None):
            picture = picture._replace(most=_most(source))
    return picture


def _most(source: Source) -> float | None:
    """About the largest number of 16 bits that is not empty, in parts of the picture itself; None if all of them are."""
    width, height = source.levels[0][:2]
    most = None
    for top in {round(y) for y in np.linspace(0, max(height - LOOKED_AT_PX, 0), LOOKED_AT)}:
        for left in {round(x) for x in np.linspace(0, max(width - LOOKED_AT_PX, 0), LOOKED_AT)}:
            box = Box(left, top, min(left + LOOKED_AT_PX, width), min(top + LOOKED_AT_PX, height))
            pixels = source.read(box, 0)
            if source.with_empty:
                pixels = pixels[..., :-1][pixels[..., -1] == 0]
            if pixels.size:
                most = max(most or 0.0, float(pixels.max()) * 257)
    return most


_last: list[tuple[Place, Reading, Source]] = []


def open_source(place: Place, reading: Reading) -> Source:
    """The source of a picture; a process keeps the last one."""
    if not _last or _last[0][:2] != (place, reading):
        _last.clear()
        _last.append((place, reading, place.open(reading)))
    return _last[0][2]


def forget_sources() -> None:
    """Let go of the last picture: its file may change."""
    _last.clear()


def _halvings(width: int, height: int) -> list[tuple[int, int]]:
    """Sizes of a picture and its levels, finest first."""
    sizes = [(width, height)]
    while min(sizes[-1]) > COARSEST_PX:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class HeldPicture:
    """A picture in memory, with levels made when they are first asked for; all take 4/3 of the picture's bytes.

    Args:
        pixels: uint8 [H, W], or [H, W, C]: 1 or 3 bands, and one for emptiness if ``with_empty``.
        name: For messages.
        with_empty: Whether the last band says how empty a pixel is.
    """

    def __init__(self, pixels: np.ndarray, name: str = "picture", with_empty: bool = False) -> None:
        self._arrays = [pixels[..., None] if pixels.ndim == 2 else pixels]
        self._name = name
        self.with_empty = with_empty
        sizes = _halvings(pixels.shape[1], pixels.shape[0])
        self.levels = [Level(*size, 2.0**i, OVERSAMPLING if i else 0.0) for i, size in enumerate(sizes)]

    @classmethod
    def of_file(cls, picture: Picture, reading: Reading) -> HeldPicture:
        """Decode a file in full, or raise :class:`Unreadable`."""
        pixels = decoded(picture.path, reading, lambda image: to_srgb(image, picture.colours).numpy())
        return cls(pixels, str(picture.path), picture.with_empty)

    def read(self, box: Box, shrink: int) -> np.ndarray:
        """See :class:`multiscale.data.cutting.Source`."""
        while len(self._arrays) <= shrink:
            image = library().Image.new_from_array(np.ascontiguousarray(self._arrays[-1]))
            array = halved(image, self.with_empty).numpy()
            self._arrays.append(array[..., None] if array.ndim == 2 else array)
        return self._arrays[shrink][box.top : box.bottom, box.left : box.right]

    def describe(self) -> str:
        """Its name."""
        return self._name


class StoredPicture:
    """A picture whose levels lie in the cache folder, made when it is first opened; the finest in its own file if it is tiled.

    Raises:
        Unreadable: damaged.
        UserError: no room for the levels.
    """

    def __init__(self, picture: Picture, reading: Reading) -> None:
        self._picture, self._reading = picture, reading
        self.with_empty = picture.with_empty
        self._is_tiled = bool(picture.own)
        own = picture.own or (Own(picture.width, picture.height, 0, ()),)
        self.levels = [
            Level(level.width, level.height, 2.0**level.halvings, FOREIGN_OVERSAMPLING if level.halvings else 0.0)
            for level in own
        ]
        for size in _halvings(*own[-1][:2])[1:]:
            self.levels.append(Level(*size, 2 * self.levels[-1].scale, OVERSAMPLING))
        self._region: Any = None
        self._fetched = 0
        kept = self.levels[self._is_tiled :]
        folder = _kept_levels(picture, reading, kept) if kept else Path()
        self._kept = [_KeptLevel(folder / f"{i}.tif", picture.bands) for i in range(len(kept))]

    def read(self, box: Box, shrink: int) -> np.ndarray:
        """See :class:`multiscale.data.cutting.Source`."""
        with reported(self._picture.path):
            if shrink or not self._is_tiled:
                return self._kept[shrink - self._is_tiled].read(box)
            return self._fetch(box)

    def _fetch(self, box: Box) -> np.ndarray:
        """Pixels out of the file, in this thread alone: libvips's own threads do not survive a fork."""
        if self._fetched > self._reading.memory // _FETCHED_SHARE:
            self._region = None  # and with it the decoded tiles that libvips keeps
        if self._region is None:
            self._region = library().Region.new(_open_own(self._picture, self._reading, self._picture.own[0]))
            self._fetched = 0
        width, height = box.right - box.left, box.bottom - box.top
        data = self._region.fetch(box.left, box.top, width, height)
        self._fetched += len(data)
        return np.frombuffer(data, np.uint8).reshape(height, width, self._picture.bands)

    def describe(self) -> str:
        """Its name."""
        return str(self._picture.path)


def _own_levels(path: Path, size: tuple[int, int], opened: Opened, reading: Reading) -> tuple[Own, ...]:
    """A tiled TIFF and its reduced pages or sub-images, or a slide and its levels, finest first.

    A page is a level if it is tiled, of the same kind, smaller by a whole number of halvings within a pixel a halving, and is
    marked as reduced, or shows the same. A page that was asked for has no others.
    """
    image = opened.image

    def count(name: str) -> int:
        return min(int(field(image, name, 0)), MOST_PAGES)

    first: tuple[tuple[str, int], ...] = (("page", opened.page), ("subifd", -1))
    others: list[tuple[tuple[str, int], ...]] = []
    if opened.loader == "openslideload":
        first, others = (("level", 0),), [(("level", i),) for i in range(1, count("openslide.level-count"))]
    elif opened.loader == "tiffload" and reading.page is None:
        others += [(("page", opened.page), ("subifd", i)) for i in range(count("n-subifds"))]
        pages = [page for page in range(count("n-pages")) if page != opened.page]
        others = others or [(("page", page), ("subifd", -1)) for page in pages]

    def named(options: tuple[tuple[str, int], ...]) -> bool:
        """Whether the file says itself that this is a level."""
        of = dict(options)
        return "level" in of or of["subifd"] >= 0 or is_reduced(path, of["page"])

    whole = Own(*size, 0, first)
    found: dict[int, Own] = {}
    for options in others:
        with contextlib.suppress(Unreadable):
            small = open_image(path, reading, dict(options))
            part = small.image
            shrink = round(math.log2(image.width / part.width))
            fits = all(
                abs(a / 2**shrink - b) <= max(shrink, 1)
                for a, b in ((image.width, part.width), (image.height, part.height))
            )
            same_kind = (part.bands, part.format) == (image.bands, image.format)
            if (
                small.is_random
                and shrink > 0
                and fits
                and same_kind
                and (named(options) or _alike(image, part, shrink))
            ):
                turned = size != (image.width, image.height)
                part_size = (part.height, part.width) if turned else (part.width, part.height)
                found.setdefault(shrink, Own(*part_size, shrink, options))
    return (whole, *(found[shrink] for shrink in sorted(found)))


def _alike(image: Any, part: Any, halvings: int) -> bool:
    """Whether a picture and what may be a level of it agree in five places, on blocks of an eighth of each.

    A level may have been made by any filter, or by leaving out pixels: blocks are compared, not pixels. One that is taken for
    something else is made anew, which takes time and changes nothing.
    """
    side = max(8, COMPARED_PX >> halvings)
    width, height = min(side, part.width), min(side, part.height)
    ours, theirs = [], []
    for across, down in ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
        left, top = round(across * (part.width - width)), round(down * (part.height - height))
        x, y = left << halvings, top << halvings
        right, bottom = min(x + (width << halvings), image.width), min(y + (height << halvings), image.height)
        with reported(Path("level")):
            theirs.append(_block_means(_fetched(part, left, top, width, height), min(8, width), min(8, height)))
            ours.append(_block_means(_fetched(image, x, y, right - x, bottom - y), min(8, width), min(8, height)))
    error = np.abs(np.stack(ours) - np.stack(theirs)).mean()
    full = {"uchar": 255.0, "ushort": 65535.0}.get(image.format, float(np.ptp(ours)) or 1.0)
    return float(error) <= full * ALIKE


def _fetched(image: Any, left: int, top: int, width: int, height: int) -> np.ndarray:
    """Float64 [height, width, bands] of what is stored, in this thread alone."""
    data = library().Region.new(image).fetch(left, top, width, height)
    return np.frombuffer(data, NUMBERS[image.format]).reshape(height, width, image.bands).astype(np.float64)


def _block_means(pixels: np.ndarray, across: int, down: int) -> np.ndarray:
    """The means of ``down`` x ``across`` blocks, as equal as may be."""
    rows, columns = (
        np.linspace(0, n, m, endpoint=False).astype(int) for n, m in zip(pixels.shape, (down, across), strict=False)
    )
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=0), columns, axis=1)
    counts = np.diff([*rows, pixels.shape[0]])[:, None] * np.diff([*columns, pixels.shape[1]])
    return sums / counts[..., None]


def _open_own(picture: Picture, reading: Reading, own: Own) -> Any:
    """A level that a file has itself, in 8 bits and upright; of a TIFF's, orientation and profile are the whole picture's."""
    opened = open_image(picture.path, reading, dict(own.options))
    image = opened.image
    if own.halvings and opened.loader == "tiffload":
        whole = open_image(picture.path, reading, dict(picture.own[0].options)).image
        vips, image = library(), image.copy()
        for name, kind in (("orientation", vips.GValue.gint_type), ("icc-profile-data", vips.GValue.blob_type)):
            if whole.get_typeof(name):
                image.set_type(kind, name, whole.get(name))
            elif image.get_typeof(name):
                image.remove(name)
    return to_srgb(image, picture.colours)


class _KeptLevel:
    """A level in the cache: uncompressed tiles of a TIFF, read by their places."""

    def __init__(self, path: Path, bands: int) -> None:
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            self._offsets = np.array(page.dataoffsets, dtype=np.int64)
            self._across = -(-page.imagewidth // TILE_PX)  # type: ignore[union-attr]
        self._shape = (TILE_PX, TILE_PX, bands)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, box: Box) -> np.ndarray:
        bands = self._shape[2]
        result = np.empty((box.bottom - box.top, box.right - box.left, bands), np.uint8)
        row_bytes = TILE_PX * bands
        for row in range(box.top // TILE_PX, (box.bottom - 1) // TILE_PX + 1):
            top, bottom = max(box.top, row * TILE_PX), min(box.bottom, (row + 1) * TILE_PX)
            skipped, count = top - row * TILE_PX, bottom - top
            for column in range(box.left // TILE_PX, (box.right - 1) // TILE_PX + 1):
                left, right = max(box.left, column * TILE_PX), min(box.right, (column + 1) * TILE_PX)
                offset = int(self._offsets[row * self._across + column]) + skipped * row_bytes
                data = os.pread(self._file, count * row_bytes, offset)
                if len(data) != count * row_bytes:
                    raise Unreadable("has lost its levels in the cache folder; run the command again")
                tile = np.frombuffer(data, np.uint8).reshape(count, TILE_PX, bands)
                part = tile[:, left - column * TILE_PX : right - column * TILE_PX]
                result[top - box.top : bottom - box.top, left - box.left : right - box.left] = part
        return result


def _kept_levels(picture: Picture, reading: Reading, levels: Sequence[Level]) -> Path:
    """The folder with levels ``0.tif``, ``1.tif`` ..., made now if it is not there."""
    facts = os.stat(picture.path)
    colours = (picture.colours, picture.page, picture.bands, picture.own)
    key = f"{FORMAT} {picture.path.resolve()} {facts.st_size} {facts.st_mtime_ns} {colours}"
    parent = _levels_folder(reading)
    folder = parent / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    with contextlib.suppress(OSError):
        os.utime(folder)
        return folder
    needed = sum((width + TILE_PX) * (height + TILE_PX) for width, height, *_ in levels) * picture.bands
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _make_room(parent, needed, reading.cache_bytes)
        temporary = new_temporary_folder(folder.name, parent)
    except OSError as error:
        raise UserError(f"Cannot write {parent}: {error.strerror or error}; set MULTISCALE_CACHE.") from error
    try:
        with reported(picture.path):
            _write_levels(picture, reading, temporary, len(levels))
        with contextlib.suppress(OSError):  # another process was first
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_levels(picture: Picture, reading: Reading, folder: Path, count: int) -> None:
    """Levels that the file has are decoded; others are made from the file of the one before: a band at a time is in memory."""
    vips = library()
    for i in range(count):
        path = folder / f"{i}.tif"
        if i + 1 < len(picture.own):
            _save(_open_own(picture, reading, picture.own[i + 1]), path)
        elif i:
            _save(halved(vips.Image.new_from_file(str(folder / f"{i - 1}.tif")), picture.with_empty), path)
        elif picture.own:
            _save(halved(_open_own(picture, reading, picture.own[0]), picture.with_empty), path)
        else:
            decoded(picture.path, reading, partial(_save_srgb, picture.colours, path))
        with open(path, "rb+") as stream:
            os.fsync(stream.fileno())


def _save_srgb(colours: Colours, path: Path, image: Any) -> None:
    _save(to_srgb(image, colours), path)


def _save(image: Any, path: Path) -> None:
    """Write tiles; in a thread, as this one would not hear Ctrl-C within libvips."""
    image = image.copy(interpretation="b-w" if image.bands < 3 else "srgb")

    bare = {"keep": "none"} if library().at_least_libvips(8, 15) else {"strip": True}

    def save() -> None:
        image.tiffsave(str(path), tile=True, tile_width=TILE_PX, tile_height=TILE_PX, bigtiff=True, **bare)

    with ThreadPoolExecutor(1) as thread:
        saving = thread.submit(save)
        try:
            saving.result()
        except BaseException:
            image.set_kill(True)
            raise


def remove_broken_levels(reading: Reading) -> None:
    """Remove what processes that have been killed were making."""
    remove_abandoned(_levels_folder(reading), again=True)


def _levels_folder(reading: Reading) -> Path:
    return (reading.cache or cache_folder()) / "levels"


def _make_room(parent: Path, needed: int, bound: int) -> None:
    """Remove the longest unused levels until ``needed`` bytes more are within the bound; UserError if the disk is full."""
    found = []
    for entry in os.scandir(parent):
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in os.scandir(entry.path))
                found.append((entry.stat().st_mtime, size, entry.path))
    total = sum(size for _, size, _ in found) + needed
    for _, size, path in sorted(found):
        if total <= bound:
            break
        shutil.rmtree(path, ignore_errors=True)
        total -= size
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(
            f"{parent} needs {needed / 1e9:.1f} GB for the levels of a picture, and {free / 1e9:.1f} GB are free; "
            "set MULTISCALE_CACHE to a folder on another disk."
        )

"""Pictures opened by libvips, as what a patch is cut from: 8 bits of sRGB or grey, upright, and what of it is empty.

Nothing here decodes more than it is asked for: an image is a pipeline that libvips runs strip by strip. libvips is loaded
by the first picture and not by importing: forks of a process that has used it cannot use it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageCms

from dnnlib.reading import kind_of, kind_of_file, regular_size
from multiscale.data.fits import is_fits, open_fits

DEFLATE_RATIO = 1032
"""Bytes that one byte of a PNG can stand for, at most; of a JPEG it is less. A pixel has a bit or more."""
SAMPLED_PIXELS = 1 << 22
"""Of a floating-point picture, to find its range from."""

_LOADERS = frozenset(
    {
        "jpegload",
        "pngload",
        "webpload",
        "heifload",
        "tiffload",
        "gifload",
        "uhdrload",
        "jxlload",
        "jp2kload",
        "fitsload",
    }
    | {"openslideload", "ppmload"}
)
"""libvips's operations that read pictures and nothing else; not all are in every build."""
_UNBLOCKED = ("Openslide", "Jp2k", "Fits", "Ppm", "Jxl", "Raw")
"""Those of them that libvips does not vouch for; the others, SVG, PDF and ImageMagick among them, stay shut."""
_WHOLE = ("webpload", "heifload", "gifload", "uhdrload", "jxlload", "jp2kload")
"""Loaders that hold a whole decoded picture."""
_PILLOW_FORMATS = ("BMP", "DDS", "JPEG2000", "PCX", "PPM", "QOI", "SGI", "TGA")
"""What Pillow opens where libvips was built without."""
_SUBFILE_TYPE, _EXTRA_SAMPLES, _GDAL_NODATA = 254, 338, 42113
"""Tags of a TIFF: what a page is, what channels beside colour are (0: not said), and the number that stands for none."""
MOST_PAGES = 64
"""Of a TIFF, or levels of a slide, that are looked at."""
SLIDE_SUFFIXES = (".bif", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu")
"""Names of what OpenSlide reads and that is not, or not always, an ordinary TIFF."""
RAW_SUFFIXES = frozenset(
    [".3fr", ".arw", ".cr2", ".cr3", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"]
)
"""Names of what cameras' sensors saw. Some are TIFFs, of which a preview or the bare numbers are read."""
_WAYS = {
    "export {} as TIFF or PNG": RAW_SUFFIXES.union([".ai", ".eps", ".kra", ".pdf", ".psb", ".psd", ".svg", ".xcf"]),
    "take frames of {} (ffmpeg -i FILM -vf fps=1 %05d.png)": frozenset(
        [".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv"]
    ),
}
"""How pictures are made of files that are none, by their suffixes."""
_HARMLESS = re.compile(
    r"extraneous bytes before marker 0x(?!d[0-9a]|c4)|Invalid SOS parameters|Unknown Adobe color|unknown JFIF revision"
)
"""What a JPEG's decoder says of whole pictures as some cameras write them; all else that it only warns of is damage."""

T = TypeVar("T")


@functools.cache
def library() -> Any:
    """The module ``pyvips``, its loaders of documents and scripts shut."""
    import pyvips

    pyvips.block_untrusted_set(True)
    for name in _UNBLOCKED:
        pyvips.operation_block_set(f"VipsForeignLoad{name}", False)
    pyvips.cache_set_max(0)  # files may change, and have handles
    return pyvips


class Unreadable(ValueError):
    """Why a picture cannot be used, as the end of "FILE ...": "has 7 bands; ..."."""


class NotAPicture(Unreadable):
    """Nothing here knows the format."""


@dataclass(frozen=True)
class Reading:
    """How pictures are read; picklable.

    Attributes:
        memory: Bytes that all processes together may hold of pictures.
        page: Which of a file's pages or frames, from 0; None: the largest of a TIFF's, the first of these, and else the first.
        value_range: What becomes black and white, in the picture's own numbers; None: see :func:`colours_of`.
        threads: That libvips may use in a process; 0: as many as there are cores.
        cache: Folder for what is made or fetched once; None: ``dnnlib.files.cache_folder()``.
        cache_bytes: Bound of what is kept there.
    """

    memory: int = 10**9
    page: int | None = None
    value_range: tuple[float, float] | None = None
    threads: int = 0
    cache: Path | None = None
    cache_bytes: int = 50 * 10**9


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """What libvips and Pillow raise within the block becomes :class:`Unreadable`, in one line that does not repeat the file."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:  # decoders raise nearly anything for a damaged file
        text = str(getattr(error, "detail", "") or error)
        for name in (repr(os.fsencode(path)), repr(str(path)), f'"{path}"', str(path)):
            text = text.replace(name, "the file")
        lines = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())
        reason = "; ".join(list(lines)[:2]) or type(error).__name__
        raise Unreadable(f"cannot be decoded ({reason}){_way_out(path) or _advice(path, reason)}") from error


def way_out(suffix: str) -> str:
    """What to do with files of a name that promises pictures of another kind; empty where that is not known.

    Args:
        suffix: In lower case, with its point.

    Returns:
        Such as ``"export {} as TIFF or PNG"``, with braces for the files.
    """
    return next((way for way, suffixes in _WAYS.items() if suffix in suffixes), "")


def _way_out(path: Path) -> str:
    way = way_out(path.suffix.lower())
    return f"; {way.format('it')} first" if way else ""


_WAYS_OF_TIFF = {
    "bad labq format": "save it as RGB, or as Lab of 16 bits",
    "separate planes": "save it with the colours of a pixel together, not in planes",
    "byte count": "save it with all of its tiles (GDAL: without SPARSE_OK), if it is not damaged",
}
"""What to do about TIFFs that libvips does not read, by words of what it says."""


def _advice(path: Path, reason: str) -> str:
    """What to do about a file that libvips does not read, or lacks the part for, or may lack; empty if nothing shows that."""
    for words, way in _WAYS_OF_TIFF.items():
        if words in reason.lower():
            return f"; {way}"
    head = b""
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        head = stream.read(4096)
    suffix, vips = path.suffix.lower(), library()
    if suffix in SLIDE_SUFFIXES and not vips.type_find("VipsForeignLoad", "openslideload"):
        part = "OpenSlide"
    elif head[4:8] == b"ftyp" and b"hvc1" in head:
        part = "HEVC, the code of HEIC pictures"
    elif head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")) and not vips.type_find("VipsForeignLoad", "jxlload"):
        part = "JPEG XL"
    elif any(words in reason for words in ("not configured", "not implemented", "built without")):
        part = "this compression"
    elif suffix in (".avif", ".heic", ".heif") or kind_of(head) == "an AVIF or HEIF picture":
        return "; it is damaged, or of a kind that this libvips lacks a part for: convert it to JPEG, PNG or TIFF"
    else:
        return ""
    return (
        f"; such a file needs a libvips with {part}: convert it to an ordinary TIFF or PNG, or install such a libvips on your "
        "system and pip uninstall pyvips-binary"
    )


@dataclass
class Opened:
    """The pixels of a file as they are stored, not decoded yet.

    Attributes:
        image: Of libvips.
        is_random: Whether any part can be read without what is before it.
        loader: Name of libvips's operation, ``fits``, or ``pillow``.
        page: That was opened, from 0.
        nodata: The number that stands for none, where the format has a place for it.
        dropped: Whether a last channel was left out, of which the file does not say that it is transparency.
        alike: Pages that could be meant, this one among them, where nobody has named one.
    """

    image: Any
    is_random: bool
    loader: str
    page: int
    nodata: float | None = None
    dropped: bool = False
    alike: int = 1


def decoded(path: Path, reading: Reading, use: Callable[[Any], T]) -> T:
    """``use(image)`` of a file that is read once, top down; raises as :func:`open_image`."""

    def read(strict: bool) -> T:
        with reported(path):
            return use(open_image(path, reading, sequential=True, strict=strict).image)

    return _strictly(read)


def _strictly(read: Callable[[bool], T]) -> T:
    """``read(True)``, or ``read(False)`` if that ended with a warning of a JPEG's decoder that does no harm.

    A JPEG has no checksum, and its decoder goes on from damage with a warning.
    """
    try:
        return read(True)
    except Unreadable as error:
        if not _HARMLESS.search(str(error)):
            raise
    return read(False)


def open_image(
    path: Path,
    reading: Reading,
    which: Mapping[str, int] | None = None,
    *,
    sequential: bool = False,
    strict: bool = False,
) -> Opened:
    """Open a file by what it holds, whatever its name.

    Args:
        path: A regular file.
        reading: Page and memory.
        which: ``page`` and ``subifd`` of a TIFF, or ``level`` of a slide, in place of ``reading.page``.
        sequential: Whether it will be read once, top down.
        strict: Whether a JPEG's pixels end with the first warning of its decoder.

    Raises:
        Unreadable: damaged, of no known format (:class:`NotAPicture`), no such page, more than the memory holds at a time.
        UserError: no regular file.
    """
    size = regular_size(path, "the image")
    vips = library()
    vips.concurrency_set(reading.threads)
    with reported(path):
        found = vips.vips_lib.vips_foreign_find_load(os.fsencode(path))
        loader = None
        if found != vips.ffi.NULL:
            kind = vips.gobject_lib.g_type_from_name(found)
            loader = vips.ffi.string(vips.vips_lib.vips_nickname_find(kind)).decode()
        if loader not in _LOADERS:
            vips.vips_lib.vips_error_clear()
            if not is_fits(path):
                return Opened(_by_pillow(path, reading), False, "pillow", reading.page or 0)
            _check_page(1, reading)
            image, nodata = open_fits(vips, path)
            return Opened(image, False, "fits", 0, nodata)
        if loader != "openslideload" and _is_mirax(path):
            raise ValueError("the file beside the folder of a MIRAX slide is a mere preview")
        access = "random" if loader == "tiffload" else "sequential"
        fail_on = _fail_on(loader, strict)

        def load(access: str, **options: int) -> Any:
            call = partial(vips.Operation.call, loader, os.fsencode(path), access=access, **options)
            if loader != "tiffload":
                return call(fail_on=fail_on)
            with _warnings_of_libvips() as said:
                image = call(fail_on=fail_on)
            # What libvips has to say of a directory, such as tags out of order, would fail every strip as damage does.
            return call(fail_on="error") if said and not field(image, "tile-width", 0) else image

        options = dict(which or {})
        image = load(access, **options)
        alike = 1
        if which is None:
            page, alike = _page_of(image, loader, reading, partial(load, access))
            if page:
                options = {"page": page}
                image = load(access, **options)
    _check_claim(image, loader, size, reading)
    is_tiled = loader == "openslideload" or (loader == "tiffload" and field(image, "tile-width", 0) > 0)
    if loader == "tiffload" and not is_tiled and sequential and field(image, "orientation", 1) == 1:
        image = load("sequential", **options)
    if loader != "tiffload" and field(image, "orientation", 1) != 1:
        image = load("random", **options)  # a turned picture cannot be read top down
    page = options.get("page", 0)
    dropped = loader == "tiffload" and bool(image.hasalpha()) and _tag(path, page, _EXTRA_SAMPLES) in (0, (0,))
    if dropped:  # infrared, say
        image = image.extract_band(0, n=image.bands - 1)
    return Opened(image, is_tiled, loader, page, dropped=dropped, alike=alike)


def _fail_on(loader: str, strict: bool) -> str:
    """Of a TIFF's damaged tile libvips only warns, and gives black; of a JPEG some of its warnings mean no damage."""
    return "warning" if loader == "tiffload" or (strict and loader == "jpegload") else "error"


@contextlib.contextmanager
def _warnings_of_libvips() -> Iterator[list[str]]:
    """What libvips warns of in this thread within the block; it is not printed."""
    said: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread or record.levelno < logging.WARNING:
            return True
        said.append(record.getMessage())
        return False

    logger = logging.getLogger("pyvips")
    logger.addFilter(keep)
    try:
        yield said
    finally:
        logger.removeFilter(keep)


def _page_of(image: Any, loader: str, reading: Reading, load: Callable[..., Any]) -> tuple[int, int]:
    """The page to open of a file whose first is ``image``, and how many could be meant.

    Before a TIFF's picture there may be a thumbnail of it; as many pixels as the largest page have channels, depths, times.
    """
    pages = field(image, "n-pages", 1)
    if reading.page is None:
        if loader != "tiffload" or pages < 2:
            return 0, pages
        sizes = [image.width * image.height]
        for page in range(1, min(pages, MOST_PAGES)):
            try:
                other = load(page=page)
            except library().Error:  # damaged, or of a kind that is not read: not the picture
                sizes.append(0)
            else:
                sizes.append(other.width * other.height)
        return sizes.index(max(sizes)), sizes.count(max(sizes))
    _check_page(pages if "page" in library().Introspect.get(loader).optional_input else 1, reading)
    return reading.page, 1


def _check_page(count: int, reading: Reading) -> None:
    if reading.page is not None and reading.page >= count:
        raise Unreadable(f"has {count} page{'s' * (count > 1)}, and page {reading.page} is asked for (the first is 0)")


def _is_mirax(path: Path) -> bool:
    return path.suffix.lower() == ".mrxs" and (path.with_suffix("") / "Slidedat.ini").is_file()


def field(image: Any, name: str, default: Any) -> Any:
    """A field of an image's header, or ``default`` if it has none of that name."""
    return image.get(name) if image.get_typeof(name) else default


def _check_claim(image: Any, loader: str, size: int, reading: Reading) -> None:
    """Refuse what its bytes cannot hold, and what would have to be decoded at a time and is larger than the memory."""
    width, height, sample = image.width, image.height, {"uchar": 1, "ushort": 2}.get(image.format, 4)
    if loader in ("pngload", "jpegload") and width * height * image.bands > 8 * DEFLATE_RATIO * size:
        raise Unreadable(f"has {size} bytes, too few for the {width} x {height} pixels that it claims")
    at_a_time = 0
    if loader in _WHOLE or field(image, "interlaced", 0):
        at_a_time = width * height * image.bands * sample
    elif field(image, "jpeg-multiscan", 0):
        at_a_time = width * height * image.bands * 2
    if at_a_time > reading.memory:
        raise Unreadable(
            f"has {width} x {height} pixels, which its format decodes at a time, {at_a_time / 1e9:.1f} GB; "
            f"raise --memory, or save it as a tiled TIFF"
        )


@contextlib.contextmanager
def without_size_limit() -> Iterator[None]:
    """Pillow refuses to open images above a size as an attack; what is decoded of them is bounded here."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _no_picture(path: Path, advice: str) -> str:
    """The end of "FILE ..." about a file that nothing opens; ``advice`` is that of :func:`_advice`."""
    kind, way = kind_of_file(path), _way_out(path)
    if kind is None:
        return f"is of no known format{way}{advice}"
    if kind.endswith("picture"):
        return f"begins as {kind} does and cannot be opened{way or advice or '; it is damaged or incomplete: copy it anew'}"
    if kind.endswith("ZIP") and not way:
        way = "; unpack it, if it holds pictures"
    return f"is {kind}, not a picture{way}{advice}"


def _by_pillow(path: Path, reading: Reading) -> Any:
    """A whole picture of a format that this libvips lacks."""
    vips = library()
    try:
        with without_size_limit():
            opened = Image.open(path, formats=_PILLOW_FORMATS)
    except Image.UnidentifiedImageError as error:
        advice = _advice(path, "")
        raise (Unreadable if advice else NotAPicture)(_no_picture(path, advice)) from error
    with opened as image:
        _check_page(getattr(image, "n_frames", 1), reading)
        if (needed := image.width * image.height * 4) > reading.memory:
            raise Unreadable(
                f"has {image.width} x {image.height} pixels, which its format decodes at a time, {needed / 1e9:.1f} GB; "
                "raise --memory, or save it as a tiled TIFF"
            )
        mode = image.mode
        if mode in ("1", "P", "PA", "La", "RGBa", "YCbCr", "HSV", "LAB", "RGBX"):
            image = image.convert({"1": "L", "La": "LA"}.get(mode, "RGBA" if "A" in image.getbands() else "RGB"))  # type: ignore[assignment]
        pixels = np.asarray(image)
        if (
            pixels.dtype.kind in "iu"
            and pixels.dtype.itemsize == 4
            and pixels.size
            and 0 <= pixels.min() <= pixels.max() < 65536
        ):
            pixels = pixels.astype(np.uint16)  # Pillow's "I" is mostly 16 bits
        result = vips.Image.new_from_array(np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("="))))
        kind = {"LA": "b-w", "RGBA": "srgb", "RGB": "srgb", "CMYK": "cmyk"}.get(image.mode, result.interpretation)
        result = result.copy(interpretation=kind)
        if profile := image.info.get("icc_profile"):
            result.set_type(vips.GValue.blob_type, "icc-profile-data", profile)
        return result


@dataclass(frozen=True)
class Colours:
    """How stored numbers become 8-bit colours; picklable.

    Attributes:
        value_range: Black and white in the stored numbers; None where 8 bits are stored and stay.
        nodata: The number that stands for none.
    """

    value_range: tuple[float, float] | None
    nodata: float | None


def colours_of(path: Path, opened: Opened, reading: Reading) -> Colours:
    """What must be known of a whole picture before its first pixel can be shown.

    Without ``reading.value_range`` black and white are all that 8 or 16 bits without a sign can be; of other integers, which
    are measurements and no colours, the least and the largest in the picture, which is decoded for that; and of floating-point
    numbers the 0.1 and 99.9 percentiles of a sample.
    """
    image, nodata = opened.image, opened.nodata
    if opened.loader == "tiffload":
        nodata = _gdal_nodata(path, opened.page)
    if reading.value_range is not None:
        return Colours(reading.value_range, nodata)
    if image.format == "uchar" or image.interpretation in _OTHER_SPACES:
        return Colours(None, nodata)
    if image.format == "ushort":
        return Colours((0.0, 65535.0), nodata)
    if image.format in _OTHER_INTEGERS:
        return Colours(decoded(path, reading, partial(_extremes, nodata=nodata)), nodata)
    step = max(1, math.ceil(math.sqrt(image.width * image.height / SAMPLED_PIXELS)))
    with reported(path):
        colour = image.extract_band(0, n=image.bands - image.hasalpha())
        values = colour.subsample(step, step).numpy().astype(np.float64)
    values = values[np.isfinite(values) & (values != nodata)]
    if not values.size:
        raise Unreadable("holds no number that is finite and not its own sign for none")
    low, high = (float(value) for value in np.percentile(values, (0.1, 99.9)))
    return Colours((low, high) if high > low else (low, low + 1), nodata)


_OTHER_SPACES = ("lab", "labs", "xyz", "yxy", "hsv", "lch", "cmc", "oklab", "oklch")
"""Colours that libvips converts to sRGB, whatever the format of their numbers."""

_OTHER_INTEGERS = ("char", "short", "uint", "int")

NUMBERS = dict(zip(("uchar", "char", "ushort", "short", "uint", "int", "float", "double"), "BbHhIifd", strict=True))
"""NumPy's types of libvips's formats."""


def _extremes(image: Any, nodata: float | None) -> tuple[float, float]:
    """The least and the largest number of a picture of integers that stand for something; two that differ."""
    colour, limits = image.extract_band(0, n=image.bands - image.hasalpha()), np.iinfo(NUMBERS[image.format])
    least, most = colour, colour
    if nodata is not None:
        least = (colour == nodata).ifthenelse(int(limits.max), colour)
        most = (colour == nodata).ifthenelse(int(limits.min), colour)
    found = least.bandjoin(most).stats().numpy()[1:, :2]  # least and largest of each band
    low, high = float(found[: colour.bands, 0].min()), float(found[colour.bands :, 1].max())
    if low > high:
        raise Unreadable("holds no number that is not its own sign for none")
    return (low, high) if high > low else (low, low + 1)


def _gdal_nodata(path: Path, page: int) -> float | None:
    try:
        value = _tag(path, page, _GDAL_NODATA)
        return None if value is None else float(str(value).strip("\0 "))
    except ValueError:
        return None


def is_reduced(path: Path, page: int) -> bool:
    """Whether a TIFF says of a page that it is a smaller version of another."""
    return bool((_tag(path, page, _SUBFILE_TYPE) or 0) & 1)


def _tag(path: Path, page: int, code: int) -> Any:
    """A tag of a TIFF's page; None if it has none of that number."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            tag = file.pages[page].tags.get(code)  # type: ignore[union-attr]
            return None if tag is None else tag.value
    except Exception:  # libvips says what is wrong with a TIFF
        return None


def decode(data: bytes) -> np.ndarray:
    """A small picture of PNG, JPEG, WebP, AVIF, GIF or TIFF: uint8 [H, W, C], 1 or 3 bands of colour and one of emptiness.

    Raises:
        Unreadable: it cannot be decoded.
    """
    return _strictly(partial(_decode, data))


def _decode(data: bytes, strict: bool) -> np.ndarray:
    vips = library()
    with reported(Path("tile")):
        found = vips.vips_lib.vips_foreign_find_load_buffer(data, len(data))
        loader = ""
        if found != vips.ffi.NULL:
            kind = vips.gobject_lib.g_type_from_name(found)
            loader = vips.ffi.string(vips.vips_lib.vips_nickname_find(kind)).decode()
        if loader.removesuffix("_buffer") not in _LOADERS:
            vips.vips_lib.vips_error_clear()
            raise NotAPicture("is of no known format")
        fail_on = _fail_on(loader.removesuffix("_buffer"), strict)
        image = vips.Operation.call(loader, data, fail_on=fail_on)
        limits = {"uchar": None, "ushort": (0.0, 65535.0)}
        if image.format not in limits:
            raise Unreadable("has neither 8 nor 16 bits")
        pixels = to_srgb(image, Colours(limits[image.format], None))
        return (pixels if image.hasalpha() else pixels.bandjoin(0)).numpy()


def is_grey(image: Any) -> bool:
    """Whether a picture has one band beside an alpha."""
    return image.bands - image.hasalpha() == 1


def has_empty(image: Any, colours: Colours) -> bool:
    """Whether parts of a picture may be empty."""
    return bool(image.hasalpha()) or colours.nodata is not None or image.format in ("float", "double")


def to_srgb(image: Any, colours: Colours) -> Any:
    """8 bits of what is stored: ``L`` or ``RGB`` bands, upright, and one more if :func:`has_empty`: 255 where empty, else 0.

    Empty is what is fully transparent, not a number, or the file's own number for none. Transparency lies on white.
    """
    vips = library()
    alpha, empty, bands = None, None, image.bands
    if image.hasalpha():
        alpha = image.extract_band(image.bands - 1)
        image = image.extract_band(0, n=image.bands - 1)
        empty = alpha == 0
    if image.bands not in (1, 3) and not (image.bands == 4 and image.interpretation == "cmyk"):
        raise Unreadable(f"has {bands} bands; save one (grey) or three (RGB) of them, with or without transparency")
    if colours.nodata is not None:
        none = (image == colours.nodata).bandand()
        empty = none if empty is None else empty | none
    if image.format in ("float", "double"):
        none = (image != image).bandor()
        image = (image == image).ifthenelse(image, 0)
        empty = none if empty is None else empty | none
    pixels = _colour(image, colours)
    if alpha is not None:
        full = {"uchar": 255, "ushort": 65535}.get(alpha.format, 255)
        if full != 255:
            alpha = (alpha * (255 / full)).rint()
        pixels = pixels.bandjoin(alpha.cast("uchar")).copy(interpretation="b-w" if pixels.bands == 1 else "srgb")
        pixels = pixels.flatten(background=[255] * (pixels.bands - 1))
    if empty is not None:
        pixels = pixels.bandjoin(empty.cast("uchar"))
    orientation = field(image, "orientation", 1)
    turned = pixels.autorot() if orientation != 1 else pixels
    return turned.copy(interpretation=vips.Interpretation.MULTIBAND)


def _colour(image: Any, colours: Colours) -> Any:
    """uchar, one band or three."""
    grey = image.bands == 1
    profile = _profile(image)
    if colours.value_range is not None and not (
        profile and image.format == "ushort" and colours.value_range == (0, 65535)
    ):
        low, high = colours.value_range
        image = ((image - low) * (255 / (high - low))).rint().cast("uchar")
        image = image.copy(interpretation="b-w" if grey else "cmyk" if image.bands == 4 else "srgb")
    if profile:
        image = image.icc_transform("srgb", embedded=True, depth=8, intent="relative", black_point_compensation=True)
        return image.extract_band(0) if grey else image
    if image.interpretation == "cmyk":
        ink = image.extract_band(0, n=3).invert().cast("float") * image.extract_band(3).invert() / 255
        return ink.rint().cast("uchar")
    if image.interpretation in _OTHER_SPACES:
        return image.colourspace("srgb").cast("uchar")
    return image


def _profile(image: Any) -> bytes | None:
    """An embedded ICC profile that changes colours: one that fits the picture and is not sRGB itself."""
    data = field(image, "icc-profile-data", None)
    if data is None:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(bytes(data))).profile
    except Exception:  # not a profile: the picture is shown as others show it
        return None
    wanted = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(image.bands)
    return None if profile.xcolor_space.strip() != wanted or _is_srgb(bytes(data)) else bytes(data)


@functools.lru_cache(maxsize=16)
def _is_srgb(data: bytes) -> bool:
    """Whether a profile leaves colours as they are, to two levels of 255: by what it does, whatever it is called."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    if profile.profile.xcolor_space.strip() != "RGB":
        return False
    levels = np.array([0, 16, 48, 96, 160, 224, 255], np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    try:
        shown = ImageCms.profileToProfile(Image.fromarray(colours), profile, ImageCms.createProfile("sRGB"), _RELATIVE)
    except ImageCms.PyCMSError:
        return False
    return int(np.abs(np.asarray(shown).astype(int) - colours).max()) <= 2


_RELATIVE = ImageCms.Intent.RELATIVE_COLORIMETRIC


def halved(image: Any, with_empty: bool) -> Any:
    """An image of :func:`to_srgb` on half as many pixels a side, rounded up: Lanczos with three lobes.

    A pixel of the last band is above 0 if any of those that it stands for is.
    """
    count = image.bands - with_empty
    image = image.embed(0, 0, image.width + image.width % 2, image.height + image.height % 2, extend="copy")
    colour = image.extract_band(0, n=count) if with_empty else image
    small = colour.reduce(2, 2, kernel="lanczos3")
    if with_empty:
        small = small.bandjoin(image.extract_band(count).cast("float").shrink(2, 2).ceil().cast("uchar"))
    return small.copy(interpretation="multiband")

"""Images as files that say what they show: PNG and TIFF of 8 or 16 bits, JPEG, WebP.

Pictures with metadata in colour say that their colours are sRGB: PNG by its own chunk, the others by a profile. Where the
metadata hold ``dpi``, pixels an inch, the file also states it where its format has it, for programs that print.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import png
import tifffile
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from dnnlib.errors import UserError
from dnnlib.files import AlreadyThere, atomic_write
from dnnlib.pictures import PNG_STRATEGY
from dnnlib.reading import TEXT_BYTES, read_text

TEXT_CHUNK = "multiscale"
"""Keyword of the PNG's text chunk (iTXt) that holds the metadata as JSON."""
SRGB = (b"sRGB", b"\0")
"""The PNG's chunk that says what its colours are (sRGB, perceptual), so that programs that print need not guess."""
PROFILE_DATE = slice(24, 36)
"""Bytes of a profile with the time at which it was made, six numbers of 16 bits (ICC.1:2010, 7.2.8)."""
QUALITY = 95
"""Of JPEG and WebP."""
EXIF_DESCRIPTION, EXIF_X_RESOLUTION, EXIF_Y_RESOLUTION, EXIF_RESOLUTION_UNIT = 270, 282, 283, 296
EXIF_INCH = 2
EXIF_BYTES = 65_000
"""Limit of what a JPEG file can say of itself."""


def encode_png(pixels: np.ndarray, metadata: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file's bytes.

    Args:
        pixels: uint8 or uint16, [H, W], [H, W, 1] (grey) or [H, W, 3] (RGB).
        metadata: JSON values, kept in the text chunk ``multiscale``.
    """
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    stream = io.BytesIO()
    dpi = (metadata or {}).get("dpi")
    if pixels.dtype == np.uint8:
        info = PngInfo()
        info.add(*SRGB)
        if metadata is not None:
            info.add_itxt(TEXT_CHUNK, json.dumps(metadata))
        Image.fromarray(pixels).save(stream, "PNG", pnginfo=info, compress_type=PNG_STRATEGY, **_resolution(dpi))
        return stream.getvalue()
    height, width = pixels.shape[:2]
    png.Writer(width, height, greyscale=pixels.ndim == 2, bitdepth=16).write(stream, pixels.reshape(height, -1))
    header, *others = png.Reader(bytes=stream.getvalue()).chunks()
    chunks = [header, SRGB]
    if dpi is not None:
        per_metre = round(dpi / 0.0254)
        chunks.append((b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1)))
    if metadata is not None:
        text = TEXT_CHUNK.encode() + bytes(5) + json.dumps(metadata).encode()  # not compressed, no language
        chunks.append((b"iTXt", text))
    stream = io.BytesIO()
    png.write_chunks(stream, [*chunks, *others])
    return stream.getvalue()


def encode_jpeg(
    pixels: np.ndarray, quality: int = QUALITY, *, subsampling: int = 0, metadata: Mapping[str, Any] | None = None
) -> bytes:
    """A JPEG file's bytes.

    Args:
        pixels: uint8 [H, W, 1] or [H, W, 3].
        quality: Of Pillow.
        subsampling: 0 keeps the resolution of colour, 2 halves it.
        metadata: JSON values, kept as the EXIF description.

    Raises:
        UserError: the metadata are too long for JPEG.
    """
    dpi = (metadata or {}).get("dpi")
    said = b"" if metadata is None else exif(json.dumps(metadata), dpi)
    if len(said) > EXIF_BYTES:
        raise UserError(
            "A JPEG cannot say that it shows so many worlds; give a name that ends in .png, or fewer worlds."
        )
    profile = b"" if metadata is None else _profile(pixels)
    stream = io.BytesIO()
    _picture(pixels).save(
        stream, "jpeg", quality=quality, subsampling=subsampling, exif=said, icc_profile=profile, **_resolution(dpi)
    )
    return stream.getvalue()


def encode_webp(pixels: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
    """A lossy WebP file's bytes: of uint8 [H, W, 1] or [H, W, 3], with the metadata as EXIF description."""
    stream = io.BytesIO()
    said = exif(json.dumps(metadata), metadata.get("dpi"))
    _picture(pixels).convert("RGB").save(stream, "webp", quality=QUALITY, exif=said, icc_profile=srgb_profile())
    return stream.getvalue()


def encode_tiff(pixels: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
    """A TIFF file's bytes: of uint8 or uint16 [H, W, 1] or [H, W, 3], with the metadata as its description."""
    stream = io.BytesIO()
    colour = pixels.shape[2] == 3
    tifffile.imwrite(
        stream,
        pixels if colour else pixels[..., 0],
        **tiff_layout(colour=colour),
        **tiff_tags(metadata, colour=colour),
    )
    return stream.getvalue()


def exif(description: str, dpi: int | None = None) -> bytes:
    """EXIF as JPEG has it, which holds a description of ASCII characters."""
    tags = Image.Exif()
    tags[EXIF_DESCRIPTION] = description
    if dpi is not None:
        tags[EXIF_X_RESOLUTION] = tags[EXIF_Y_RESOLUTION] = float(dpi)
        tags[EXIF_RESOLUTION_UNIT] = EXIF_INCH
    return tags.tobytes()


@functools.cache
def srgb_profile() -> bytes:
    """sRGB as an ICC profile, always the same bytes."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[PROFILE_DATE] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(data)


def _profile(pixels: np.ndarray) -> bytes:
    """That of colours; a profile of colours is wrong in a grey picture."""
    return srgb_profile() if pixels.shape[2] == 3 else b""


def tiff_layout(*, colour: bool) -> dict[str, Any]:
    """What tifffile is told of every page, [H, W, 3] in colour and [H, W] in grey."""
    channels = {"photometric": "rgb", "planarconfig": "contig"} if colour else {"photometric": "minisblack"}
    return {**channels, "compression": "zlib", "software": False, "metadata": None}


def tiff_tags(metadata: Mapping[str, Any], *, colour: bool) -> dict[str, Any]:
    """What tifffile is told of the first page: metadata as its description, colours and ``dpi``."""
    profile = {"iccprofile": srgb_profile()} if colour else {}
    dpi = {"resolution": (metadata["dpi"],) * 2, "resolutionunit": "INCH"} if "dpi" in metadata else {}
    return {"description": json.dumps(metadata), **profile, **dpi}


def _resolution(dpi: int | None) -> dict[str, Any]:
    """What Pillow is told of it."""
    return {} if dpi is None else {"dpi": (dpi, dpi)}


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


ENCODERS: Mapping[str, Callable[[np.ndarray, Mapping[str, Any]], bytes]] = {
    ".png": encode_png,
    ".jpg": lambda pixels, metadata: encode_jpeg(pixels, metadata=metadata),
    ".jpeg": lambda pixels, metadata: encode_jpeg(pixels, metadata=metadata),
    ".webp": encode_webp,
    ".tif": encode_tiff,
    ".tiff": encode_tiff,
}
"""Of pictures with metadata, by the ending of the name, as ``PICTURES`` (multiscale/rendering/request.py) lists them."""
MAX_SIDES_PX = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}


def check_size(path: Path, width: int, height: int) -> None:
    """UserError if a picture of this size cannot be in a file of this ending."""
    most = MAX_SIDES_PX.get(path.suffix.lower(), max(width, height))
    if max(width, height) > most:
        raise UserError(
            f"A picture of {width} x {height} pixels does not fit into {path}, which takes up to {most:,} a side; give a name "
            "that ends in .png or .tif."
        )


def save_picture(path: Path, pixels: np.ndarray, metadata: Mapping[str, Any]) -> None:
    """Write a picture atomically, in the format of its ending, one of ``ENCODERS``.

    Args:
        path: The file.
        pixels: uint8 [H, W, 1] or [H, W, 3], or of PNG and TIFF uint16.
        metadata: JSON values, kept in the file.

    Raises:
        UserError: it is too large for the format, or cannot be written.
    """
    check_size(path, pixels.shape[1], pixels.shape[0])
    data = ENCODERS[path.suffix.lower()](pixels, metadata)
    with atomic_write(path) as stream:
        stream.write(data)


def claimed(folder: Path, text: str) -> str:
    """Have a folder say in ``made-of.json`` what its files follow from, if it is new or empty; returns what it says.

    The caller refuses to add files to a folder that says something else, or nothing (``""``).

    Raises:
        UserError: the folder cannot be written.
    """
    made_of = folder / "made-of.json"
    if not folder.is_dir() or all(
        path.suffix == ".tmp" for path in folder.iterdir()
    ):  # no more than a full disk has left
        with contextlib.suppress(AlreadyThere), atomic_write(made_of, "w", replace=False) as stream:
            stream.write(text)
    with contextlib.suppress(UserError):
        return read_text(made_of, "the facts", max(TEXT_BYTES, len(text)))
    return ""

"""Images as PNG files of 8 or 16 bits that say what they show."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import png
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dnnlib.files import atomic_write
from dnnlib.pictures import PNG_STRATEGY

TEXT_CHUNK = "multiscale"
"""Keyword of the PNG's text chunk (iTXt) that holds the metadata as JSON."""


def encode_png(pixels: np.ndarray, metadata: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file's bytes.

    Args:
        pixels: uint8 or uint16, [H, W], [H, W, 1] (grey) or [H, W, 3] (RGB).
        metadata: JSON values, kept in the text chunk ``multiscale``.
    """
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    stream = io.BytesIO()
    if pixels.dtype == np.uint8:
        info = PngInfo()
        if metadata is not None:
            info.add_itxt(TEXT_CHUNK, json.dumps(metadata))
        Image.fromarray(pixels).save(stream, "PNG", pnginfo=info, compress_type=PNG_STRATEGY)
        return stream.getvalue()
    height, width = pixels.shape[:2]
    png.Writer(width, height, greyscale=pixels.ndim == 2, bitdepth=16).write(stream, pixels.reshape(height, -1))
    if metadata is None:
        return stream.getvalue()
    header, *others = png.Reader(bytes=stream.getvalue()).chunks()
    text = TEXT_CHUNK.encode() + bytes(5) + json.dumps(metadata).encode()  # not compressed, no language
    stream = io.BytesIO()
    png.write_chunks(stream, [header, (b"iTXt", text), *others])
    return stream.getvalue()


def encode_jpeg(pixels: np.ndarray, quality: int = 95, *, subsampling: int = 0) -> bytes:
    """A JPEG file's bytes.

    Args:
        pixels: uint8 [H, W, 1] or [H, W, 3].
        quality: Of Pillow.
        subsampling: 0 keeps the resolution of colour, 2 halves it.
    """
    stream = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.save(stream, "jpeg", quality=quality, subsampling=subsampling)
    return stream.getvalue()


def save_png(path: str | Path, pixels: np.ndarray, metadata: Mapping[str, Any]) -> None:
    """Write :func:`encode_png` atomically."""
    data = encode_png(pixels, metadata)
    with atomic_write(path) as stream:
        stream.write(data)

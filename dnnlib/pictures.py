"""Pictures laid out on a sheet, with titles.

Pixels are uint8 arrays [H, W, C]; small images are enlarged by whole factors so that their pixels can be seen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DISPLAY_PX = 128
"""Images with a smaller side are enlarged by a whole factor, to at least this."""
GAP_PX = 4
TITLE_PX = 18
ROW_TITLE_PX = 72
"""Least room for the titles of rows."""
PNG_STRATEGY = zlib.Z_RLE
"""Pillow's ``compress_type``: files within some percent of its default's, in a quarter to half of its time on photographs."""
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] = (),
    row_titles: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
) -> np.ndarray:
    """Lay out rows of images [H, W, C] of one size on a sheet, uint8 [H, W, 3].

    Args:
        rows: The images; the last row may be shorter.
        titles: Above the columns.
        row_titles: To the left of the rows.
        captions: Above each image, cut off at its width.
    """
    cells = [[enlarge(as_rgb(image)) for image in row] for row in rows]
    height, width = cells[0][0].shape[:2]
    columns = max(len(row) for row in cells)
    font = ImageFont.load_default()
    left = (
        max([ROW_TITLE_PX, *(math.ceil(font.getlength(title)) + 2 * GAP_PX for title in row_titles)])
        if row_titles
        else 0
    )
    top = TITLE_PX if titles else GAP_PX
    caption = TITLE_PX if captions else 0
    across, down = width + GAP_PX, caption + height + GAP_PX
    size = (left + columns * across + GAP_PX, top + len(rows) * down)
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        draw.text((left + GAP_PX + column * across + width / 2, top / 2), title, fill=INK, anchor="mm")
    for row, title in enumerate(row_titles or ()):
        draw.text((left / 2, top + row * down + caption + height / 2), title, fill=INK, anchor="mm")
    for y, images in enumerate(cells):
        for x, cell in enumerate(images):
            place = left + GAP_PX + x * across, top + y * down
            if captions:
                text = _fitting(captions[y][x], font, width)
                draw.text((place[0] + width / 2, place[1] + caption / 2), text, fill=INK, anchor="mm")
            picture.paste(Image.fromarray(cell), (place[0], place[1] + caption))
    return np.asarray(picture)


def _fitting(text: str, font: Any, width: int) -> str:
    """A text, cut off where it would be wider."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def enlarge(pixels: np.ndarray) -> np.ndarray:
    """Repeat pixels by the smallest whole factor that brings the shorter side to ``DISPLAY_PX``."""
    factor = max(-(-DISPLAY_PX // min(pixels.shape[:2])), 1)
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Grey [H, W, 1] -> [H, W, 3]; RGB stays."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

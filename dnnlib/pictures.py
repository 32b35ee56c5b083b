"""Pictures laid out on a sheet, with titles.

Pixels are uint8 arrays [H, W, C]; small images are enlarged by whole factors so that their pixels can be seen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

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
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], row_titles: Sequence[str] | None = None
) -> np.ndarray:
    """Lay out rows of images [H, W, C] of one size below column titles and beside row titles: uint8 [H, W, 3]."""
    cells = [[enlarge(as_rgb(image)) for image in row] for row in rows]
    side = cells[0][0].shape[0]
    columns = max(len(row) for row in cells)
    font = ImageFont.load_default()
    left = (
        max([ROW_TITLE_PX, *(math.ceil(font.getlength(title)) + 2 * GAP_PX for title in row_titles)])
        if row_titles
        else 0
    )
    top = TITLE_PX if titles or not row_titles else GAP_PX
    size = (left + columns * (side + GAP_PX) + GAP_PX, top + len(rows) * (side + GAP_PX))
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        draw.text((left + GAP_PX + column * (side + GAP_PX) + side / 2, top / 2), title, fill=INK, anchor="mm")
    for row, title in enumerate(row_titles or ()):
        draw.text((left / 2, top + row * (side + GAP_PX) + side / 2), title, fill=INK, anchor="mm")
    for y, images in enumerate(cells):
        for x, cell in enumerate(images):
            picture.paste(Image.fromarray(cell), (left + GAP_PX + x * (side + GAP_PX), top + y * (side + GAP_PX)))
    return np.asarray(picture)


def enlarge(pixels: np.ndarray) -> np.ndarray:
    """Repeat pixels by the smallest whole factor that brings the side to ``DISPLAY_PX``."""
    factor = max(-(-DISPLAY_PX // pixels.shape[0]), 1)
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Grey [H, W, 1] -> [H, W, 3]; RGB stays."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

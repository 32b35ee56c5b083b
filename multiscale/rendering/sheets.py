"""Pictures made of several views: the sample sheet of a run, and the strip that flies into one world.

Pixels are uint8 arrays [H, W, C]; small images are enlarged by whole factors so that their pixels can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from multiscale.rendering.renderer import Renderer, nearest_centre, octave_zooms
from multiscale.rendering.worlds import World

DISPLAY_PX = 128
"""Images below this side are enlarged by a whole factor to at least it."""
GAP_PX = 4
TITLE_PX = 18
ROW_TITLE_PX = 72
"""Room for the titles of rows, at least."""
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
OUTLINE = (255, 255, 255)
SHEET_CENTRE = (0.1, -0.07)
"""Where sample sheets look, as near as each zoom allows."""


def sample_sheet(renderer: Renderer, seeds: Sequence[int], centre: tuple[float, float] = SHEET_CENTRE) -> np.ndarray:
    """One row a seed, one column an octave (1x, 2x, ... to the model's zoom), all about one centre: uint8 [H, W, 3]."""
    zooms = octave_zooms(renderer.generator.config.octaves)
    views = [(seed, zoom, nearest_centre(centre, zoom)) for seed in seeds for zoom in zooms]
    images = renderer.render([v[0] for v in views], [v[1] for v in views], [v[2] for v in views])
    rows = [list(images[i : i + len(zooms)]) for i in range(0, len(images), len(zooms))]
    return grid(rows, titles=[f"{zoom:g}x" for zoom in zooms])


def zoom_strip(
    renderer: Renderer, world: World | int, centre: tuple[float, float], truncation_psi: float = 1.0
) -> np.ndarray:
    """One world at 1x, 2x, ... to the model's zoom, each view outlined in the one before it: uint8 [H, W, 3]."""
    zooms = octave_zooms(renderer.generator.config.octaves)
    centres = [nearest_centre(centre, zoom) for zoom in zooms]
    images = renderer.render([world] * len(zooms), zooms, centres, truncation_psi)
    shown = []
    for i, pixels in enumerate(images):
        picture = Image.fromarray(enlarge(as_rgb(pixels)))
        if i + 1 < len(images):
            _outline(picture, zooms[i], centres[i], zooms[i + 1], centres[i + 1])
        shown.append(np.asarray(picture))
    return grid([shown], titles=[f"{zoom:g}x" for zoom in zooms])


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


def _outline(
    picture: Image.Image, zoom: float, centre: tuple[float, float], inner_zoom: float, inner_centre: tuple[float, float]
) -> None:
    """Draw the square that the view (inner_zoom, inner_centre) covers of the picture of the view (zoom, centre)."""
    side = picture.width
    low, high = [
        [(zoom * (inner_centre[a] - centre[a]) + sign * zoom / inner_zoom / 2 + 0.5) * side for a in (0, 1)]
        for sign in (-1, 1)
    ]
    box = [round(low[0]), round(low[1]), round(high[0]) - 1, round(high[1]) - 1]
    draw = ImageDraw.Draw(picture)
    draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline=(0, 0, 0))
    draw.rectangle(box, outline=OUTLINE)

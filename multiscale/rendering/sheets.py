"""Pictures made of several views: the sample sheet of a run, and the strip that flies into one world.

Pixels are uint8 arrays [H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dnnlib.pictures import as_rgb, enlarge, grid
from multiscale.rendering.enlarging import enlarged_view
from multiscale.rendering.renderer import Renderer, nearest_centre, octave_zooms
from multiscale.rendering.worlds import World

OUTLINE = (255, 255, 255)
SHEET_CENTRE = (0.1, -0.07)
"""Where sample sheets look, as near as each zoom allows."""


def sample_sheet(renderer: Renderer, seeds: Sequence[int]) -> np.ndarray:
    """One row a seed, one column an octave (1x, 2x, ... to the model's zoom), all about one centre: uint8 [H, W, 3]."""
    zooms = octave_zooms(renderer.generator.config.octaves)
    views = [(seed, zoom, nearest_centre(SHEET_CENTRE, zoom)) for seed in seeds for zoom in zooms]
    images = renderer.render([v[0] for v in views], [v[1] for v in views], [v[2] for v in views])
    rows = [list(images[i : i + len(zooms)]) for i in range(0, len(images), len(zooms))]
    return grid(rows, titles=[f"{zoom:g}x" for zoom in zooms])


def zoom_strip(
    renderer: Renderer,
    world: World | int,
    centre: tuple[float, float],
    truncation_psi: float = 1.0,
    side: int | None = None,
) -> np.ndarray:
    """One world at 1x, 2x, ... to the model's zoom, each view outlined in the one before it: uint8 [H, W, 3].

    Args:
        renderer, world, truncation_psi: What is shown.
        centre: World coordinates (x, y) that the views are about, as near as each zoom allows.
        side: Of a view in pixels, enlarged as in films where they would be finer than the model; None: the network's own.
    """
    zooms = octave_zooms(renderer.generator.config.octaves)
    centres = [nearest_centre(centre, zoom) for zoom in zooms]
    if side is None:
        images = list(renderer.render([world] * len(zooms), zooms, centres, truncation_psi))
    else:
        views = zip(zooms, centres, strict=True)
        images = [enlarged_view(renderer, world, zoom, at, (side, side), truncation_psi) for zoom, at in views]
    pictures = []
    for i, pixels in enumerate(images):
        picture = Image.fromarray(enlarge(as_rgb(pixels)))
        if i + 1 < len(images):
            _outline(picture, zooms[i], centres[i], zooms[i + 1], centres[i + 1])
        pictures.append(np.asarray(picture))
    return grid([pictures], titles=[f"{zoom:g}x" for zoom in zooms])


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

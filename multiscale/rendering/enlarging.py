"""Pictures finer than the model: its finest pixels, enlarged by Lanczos' filter.

They come from one grid over the whole world, with all the neighbours that the filter reaches, so that a part of an enlarged
picture has the pixels of the whole one: frames of a film do not shimmer, and tiles of a file fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from multiscale.rendering.renderer import Renderer
from multiscale.rendering.worlds import World
from multiscale.view import Region

REACH_PX = 3
"""Of Lanczos' filter, in pixels that are enlarged."""


def enlarged_view(
    renderer: Renderer,
    world: World | int,
    zoom: float,
    centre: tuple[float, float],
    size: tuple[int, int] | None = None,
    truncation_psi: float = 1.0,
    *,
    bits: int = 8,
) -> np.ndarray:
    """As :meth:`Renderer.view`, but where a zoom of the model asks for finer pixels than it has, as :func:`enlarged_image`."""
    if size is not None and 1 <= zoom <= renderer.max_zoom:
        region = Region.of_view(zoom, centre, *size)
        if renderer.extrapolation(region) > 1:
            renderer.check(region, extrapolate=True)
            return enlarged_image(renderer, world, region, truncation_psi, bits=bits)
    return renderer.view(world, zoom, centre, size, truncation_psi, bits=bits)


def enlarged_image(
    renderer: Renderer,
    world: World | int,
    region: Region,
    truncation_psi: float,
    cancelled: Callable[[], bool] | None = None,
    *,
    bits: int = 8,
) -> np.ndarray:
    """A region as [H, W, C] of ``bits`` 8 (uint8) or 16 (uint16); where it is finer than the model, enlarged."""
    grid = region if renderer.extrapolation(region) == 1 else finest_pixels(renderer, region)
    pixels = renderer.pixels(world, grid, truncation_psi, bits=bits, cancelled=cancelled)
    return pixels if grid is region else enlarged(pixels, grid, region)


def finest_pixels(renderer: Renderer, region: Region) -> Region:
    """The model's finest pixels that a region is enlarged from; they begin at a sample of the network's input."""
    side, step = renderer.world_px, renderer.generator.plan.step
    low, high = _edges(region, 1 / side)
    first = [max(math.floor(edge) - REACH_PX, 0) // step * step for edge in low]
    size = [min(math.ceil(edge) + REACH_PX, side) - start for edge, start in zip(high, first, strict=True)]
    return Region.of_world(side).part(*first, *size)


def enlarged(pixels: np.ndarray, grid: Region, region: Region) -> np.ndarray:
    """The pixels of a finer region, of the same type.

    Args:
        pixels: uint8 or uint16 [H, W, C], those of ``grid``.
        grid: :func:`finest_pixels` of the region, or of one that it is a part of.
        region: What to show.
    """
    (left, top), _ = _edges(grid, grid.pitch)
    low, high = _edges(region, grid.pitch)
    first = max(low[0] - left, 0), max(low[1] - top, 0)
    last = min(high[0] - left, grid.width), min(high[1] - top, grid.height)
    large = np.empty((region.height, region.width, pixels.shape[2]), pixels.dtype)
    for i in range(pixels.shape[2]):
        channel = Image.fromarray(pixels[..., i] if pixels.dtype == np.uint8 else pixels[..., i].astype(np.float32))
        values = np.asarray(channel.resize((region.width, region.height), Image.Resampling.LANCZOS, (*first, *last)))
        large[..., i] = values if pixels.dtype == np.uint8 else np.rint(values).clip(0, np.iinfo(pixels.dtype).max)
    return large


def _edges(region: Region, pitch: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The region's upper left and lower right corner in pixels of ``pitch``, from the world's corner."""
    low = [(edge + 0.5) / pitch for edge in (region.left, region.top)]
    high = [a + n * region.pitch / pitch for a, n in zip(low, (region.width, region.height), strict=True)]
    return (low[0], low[1]), (high[0], high[1])

"""From a request to an encoded picture: views of a world, and how much two scales of it disagree.

The functions that render are generators, one tile a step, for :mod:`multiscale.explorer.scheduler`; encoding runs on other
threads. Shapes: C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from dnnlib.errors import UserError
from multiscale.explorer.messages import FrameRequest
from multiscale.explorer.networks import Network
from multiscale.explorer.scheduler import Cancelling
from multiscale.rendering.files import encode_jpeg
from multiscale.rendering.renderer import Renderer, placed, to_uint8
from multiscale.rendering.worlds import World
from multiscale.view import Region

WHOLE_PX = 1 << 19
"""Drafts of up to this size are rendered in one piece."""
DRAFT_QUALITY, SHARP_QUALITY = 85, 95
HEAT_FULL = 0.5
"""Mean |difference| over the channels (range 2) of the last colour; colours follow its square root."""
HEAT = ((0, 0, 4), (60, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))
MOST_DB = 120.0


@dataclass(frozen=True)
class Frame:
    """A rendered picture."""

    pixels: np.ndarray
    """uint8 [H, W, C]."""
    region: Region
    extrapolation: float
    error_db: float | None = None
    """For an error picture: PSNR in dB between the two scales, for a range of 2."""


def check(network: Network, request: FrameRequest) -> World:
    """The world of a request.

    Raises:
        UserError: the request cannot be rendered.
    """
    network.renderer.check(request.region, extrapolate=request.extrapolate)
    if request.error and min(request.width, request.height) < 2:
        raise UserError("The error between scales needs a picture of at least 2 x 2 pixels.")
    return World.parse(request.world)


def render(
    network: Network, world: World, request: FrameRequest, cancelled: Cancelling
) -> Generator[None, None, Frame]:
    """The frame that a request asks for."""
    if request.error:
        return (yield from _error(network, world, request, cancelled))
    region = request.region
    whole = request.quality == "draft" and region.width * region.height <= WHOLE_PX
    renderer = network.drafts if whole else network.renderer
    pieces = image(renderer, world, region, request.trunc, cancelled, extrapolate=request.extrapolate)
    pixels = _at_once(pieces) if whole else (yield from pieces)
    return Frame(pixels, region, renderer.extrapolation(region))


def image(
    renderer: Renderer,
    world: World,
    region: Region,
    truncation_psi: float,
    cancelled: Cancelling,
    *,
    extrapolate: bool = False,
    convert: Callable[[torch.Tensor], np.ndarray] = to_uint8,
    dtype: type[np.generic] = np.uint8,
) -> Generator[None, None, np.ndarray]:
    """Pixels [H, W, C] of a region; ``convert`` turns each tile [C, h, w] into pixels of ``dtype``."""
    pixels = np.empty((region.height, region.width, renderer.generator.config.img_channels), dtype)
    tiles = renderer.tiles(world, region, truncation_psi, extrapolate=extrapolate, cancelled=cancelled)
    for tile in placed(tiles, pixels, convert):
        height, width = tile.pixels.shape[1:]
        if (tile.x + width, tile.y + height) != (region.width, region.height):
            yield
    return pixels


def encode(frame: Frame, quality: str) -> bytes:
    """As JPEG, with subsampled colour in drafts only."""
    if quality == "draft":
        return encode_jpeg(frame.pixels, DRAFT_QUALITY, subsampling=2)
    return encode_jpeg(frame.pixels, SHARP_QUALITY)


def _error(
    network: Network, world: World, request: FrameRequest, cancelled: Cancelling
) -> Generator[None, None, Frame]:
    """The request's region reduced by 2 against the same rendered at twice the pitch."""
    whole = request.region
    fine = whole.part(0, 0, whole.width // 2 * 2, whole.height // 2 * 2)
    coarse = Region(left=fine.left, top=fine.top, pitch=2 * fine.pitch, width=fine.width // 2, height=fine.height // 2)
    floats = partial(
        image,
        network.renderer,
        world,
        truncation_psi=request.trunc,
        cancelled=cancelled,
        extrapolate=request.extrapolate,
        convert=_floats,
        dtype=np.float32,
    )
    sharper = yield from floats(region=fine)
    yield
    direct = yield from floats(region=coarse)
    yield
    reduced = sharper.reshape(coarse.height, 2, coarse.width, 2, -1).mean(axis=(1, 3))
    difference = reduced.clip(-1, 1) - direct.clip(-1, 1)
    mean_square = float(np.square(difference, dtype=np.float64).mean())
    decibel = min(10 * math.log10(4 / mean_square), MOST_DB) if mean_square else MOST_DB
    return Frame(_heat(np.abs(difference).mean(axis=2)), coarse, network.renderer.extrapolation(fine), decibel)


def _heat(values: np.ndarray) -> np.ndarray:
    """Magnitudes [H, W] -> colours, uint8 [H, W, 3]."""
    position = np.sqrt(np.minimum(values / HEAT_FULL, 1)) * (len(HEAT) - 1)
    stops = np.arange(len(HEAT))
    return np.stack([np.interp(position, stops, channel) for channel in zip(*HEAT, strict=True)], axis=-1).astype(
        np.uint8
    )


def _floats(tile: torch.Tensor) -> np.ndarray:
    return tile.movedim(0, -1).cpu().numpy()


def _at_once(pieces: Generator[None, None, np.ndarray]) -> np.ndarray:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            pixels: np.ndarray = end.value
            return pixels

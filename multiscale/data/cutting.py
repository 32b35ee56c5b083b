"""Cut square patches of any size out of a picture of any size, each for the price of its own pixels.

A patch that shows much of the picture is not reduced from all of its pixels: a picture has levels, each of half as many
pixels a side as the one before, and the patch is cut from the coarsest that is still several times finer than itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

OVERSAMPLING = 3.0
"""Pixels of a level across one of a patch, at least (and fewer than twice as many, unless the level is the picture itself).

A patch then lives in the lowest third of a level's band. There a halving changes the amplitude by at most 0.08 dB, and
leaves -44 dB of what it folds in; rounding the levels to 8 bits adds less than a fifth of the patch's own rounding.
"""
FOREIGN_OVERSAMPLING = 6.0
"""The same for levels that others have made, mostly by averaging squares of four pixels.

On a zone plate (tests/data/test_pictures.py) averages leave what one reduction leaves within 0.4 dB at 8, and 2.4 dB more at 4.
"""
_LOBES = 3
"""Pixels of a patch that its filter sees beyond the border."""


class Box(NamedTuple):
    """A part of a level: whole pixels, the last ones excluded."""

    left: int
    top: int
    right: int
    bottom: int


class Level(NamedTuple):
    """One of a picture's sizes.

    Attributes:
        width, height: In pixels.
        scale: Pixels of the picture, a side, in one of this level: 1 for the first.
        oversampling: Pixels across one of a patch, at least, that this level can be used with; 0 for the finest.
    """

    width: int
    height: int
    scale: float
    oversampling: float


class Source(Protocol):
    """A picture that can be read in parts, at several sizes: in memory, in a file, on a server."""

    @property
    def levels(self) -> Sequence[Level]:
        """Finest first; the first is the picture itself."""
        ...

    @property
    def with_empty(self) -> bool:
        """Whether arrays have a last band that says how empty each pixel is, 0 ... 255."""
        ...

    def read(self, box: Box, shrink: int) -> np.ndarray:
        """Pixels of the level with index ``shrink`` inside the box: uint8 [H, W, C] with C of 1 or 3, and one for emptiness.

        Raises:
            Unreadable: damaged, or a server does not give them.
        """
        ...

    def describe(self) -> str:
        """What it is, for messages: its name."""
        ...


class Patch(NamedTuple):
    """A patch and how much of it is empty.

    Attributes:
        pixels: uint8 [N, N] or [N, N, 3].
        empty: Share of its square that is empty, 0 ... 1; above 0 also if only what its filter sees beyond is.
    """

    pixels: np.ndarray
    empty: float


class Cut(NamedTuple):
    """What must be read for a patch: a level, pixels of it, and the square within them, in pixels of the level."""

    shrink: int
    box: Box
    square: tuple[float, float, float, float]


def plan_cut(levels: Sequence[Level], side: float, across: float, down: float, resolution: int) -> Cut:
    """Where a patch's pixels are.

    Args:
        levels: Of the source.
        side: Of the square, in pixels of the picture, at least ``resolution``.
        across: Place of the square from the left border (0) to the right (1).
        down: Place from top (0) to bottom (1).
        resolution: N.
    """
    width, height = levels[0][:2]
    left, top = across * (width - side), down * (height - side)
    shrink = max(i for i, level in enumerate(levels) if i == 0 or side / level.scale >= level.oversampling * resolution)
    level, x = levels[shrink], 1 / levels[shrink].scale
    square = (left * x, top * x, min((left + side) * x, level.width), min((top + side) * x, level.height))
    margin = _LOBES * max(side * x / resolution, 1) + 2
    box = Box(
        max(math.floor(square[0] - margin), 0),
        max(math.floor(square[1] - margin), 0),
        min(math.ceil(square[2] + margin), level.width),
        min(math.ceil(square[3] + margin), level.height),
    )
    return Cut(shrink, box, square)


def cut_square(source: Source, side: float, across: float, down: float, resolution: int) -> Patch:
    """A square of the picture, reduced to N x N; the arguments are those of :func:`plan_cut`.

    Lanczos with three lobes, stretched by the reduction: of Pillow's filters the one with the flattest pass band and
    the least aliasing (tests/data/test_prepare.py measures both). It sees the pixels beyond the square's border.
    """
    shrink, box, square = plan_cut(source.levels, side, across, down, resolution)
    pixels = source.read(box, shrink)
    inner = (square[0] - box.left, square[1] - box.top, square[2] - box.left, square[3] - box.top)
    empty = 0.0
    if source.with_empty:
        mask, pixels = pixels[..., -1], pixels[..., :-1]
        if mask.any():
            within = mask[int(inner[1]) : math.ceil(inner[3]), int(inner[0]) : math.ceil(inner[2])]
            empty = max(float(within.mean()) / 255, 1e-9)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    return Patch(np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=inner)), empty)


def side_of(source: Source, label: float, resolution: int) -> float:
    """Side in pixels of the square L/2^s, L the picture's shorter side; never smaller than N."""
    width, height = source.levels[0][:2]
    return max(min(width, height) / 2**label, resolution)


def cut_patch(source: Source, label: float, across: float, down: float, resolution: int) -> np.ndarray:
    """The square of side L/2^s at a place in the picture, reduced to N x N.

    Args:
        source: L is its shorter side in pixels.
        label: s, 0 <= s <= log2(L/N); the square is never smaller than N.
        across: Place of the square from the left border (0) to the right (1).
        down: Place from top (0) to bottom (1).
        resolution: N.

    Returns:
        uint8 [N, N] or [N, N, 3].
    """
    return cut_square(source, side_of(source, label, resolution), across, down, resolution).pixels

"""Cut square patches of any size out of a large image, each for the price of its own pixels.

A patch that shows much of the image is not reduced from all of its pixels: the image is halved again and again, once, and
the patch is cut from the coarsest of these levels that is still several times finer than the patch.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

OVERSAMPLING = 3.0
"""Pixels of a level across one of a patch, at least (and fewer than twice as many, unless the level is the image itself).

A patch then lives in the lowest third of a level's band. There a halving changes the amplitude by at most 0.08 dB, and
leaves -44 dB of what it folds in; rounding the levels to 8 bits adds less than a fifth of the patch's own rounding.
"""


class Pyramid:
    """An image and its halvings, each made when it is first asked for and then kept; all take 4/3 of the image's memory."""

    def __init__(self, image: Image.Image) -> None:
        self._levels = [image]

    @property
    def image(self) -> Image.Image:
        """The image itself."""
        return self._levels[0]

    def level(self, reduction: float) -> Image.Image:
        """The coarsest level with ``OVERSAMPLING`` pixels in ``reduction`` pixels of the image, or the image itself."""
        depth = 0
        while reduction >= OVERSAMPLING * 2 ** (depth + 1):
            depth += 1
        while len(self._levels) <= depth:
            finer = self._levels[-1]
            size = (finer.width + 1) // 2, (finer.height + 1) // 2
            self._levels.append(finer.resize(size, Image.Resampling.LANCZOS))
        return self._levels[depth]


def cut_patch(source: Image.Image | Pyramid, label: float, across: float, down: float, resolution: int) -> np.ndarray:
    """The square of side L/2^s at a place in the image, reduced to N x N.

    Lanczos with three lobes, stretched by the reduction: of Pillow's filters the one with the flattest pass band and
    the least aliasing (tests/data/test_prepare.py measures both). It sees the pixels beyond the square's border.

    Args:
        source: ``L`` or ``RGB``; L is the image's shorter side in pixels. For many patches give a ``Pyramid``.
        label: s, 0 <= s <= log2(L/N); the square is never smaller than N.
        across: Place of the square from the left border (0) to the right (1).
        down: Place from top (0) to bottom (1).
        resolution: N.

    Returns:
        uint8 [N, N] or [N, N, 3].
    """
    pyramid = source if isinstance(source, Pyramid) else Pyramid(source)
    width, height = pyramid.image.size
    side = max(min(width, height) / 2**label, resolution)
    left, top = across * (width - side), down * (height - side)
    level = pyramid.level(side / resolution)
    x, y = level.width / width, level.height / height  # pixels of the level in one of the image
    box = (left * x, top * y, min((left + side) * x, level.width), min((top + side) * y, level.height))
    return np.asarray(level.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))

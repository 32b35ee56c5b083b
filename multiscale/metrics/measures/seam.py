"""The largest step across the borders of tiles, in each octave.

Shapes: B worlds, C channels, N side of a view in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from multiscale.metrics.measure import KINDS, Result
from multiscale.metrics.render import Model, ViewKind
from torch_utils.random import stream

if TYPE_CHECKING:
    from multiscale.rendering.renderer import Renderer


def seam_steps(renderer: Renderer, octave: int, seed: int, indices: Sequence[int]) -> np.ndarray:
    """The largest step across tile borders in each of several worlds, in levels of 255: float [B].

    Four tiles of N x N pixels that meet in a point are rendered each on its own, and once more all in one image. At the
    pixels on both sides of the borders the difference is what tiling adds: a seam is seen if it is 1 or more.
    """
    from multiscale.view import Region  # here: PyTorch takes seconds

    size = renderer.resolution
    steps = []
    for index in indices:
        rng = stream(seed, "measure seam", octave, index)
        pitch = 2.0 ** -max(octave + rng.random(), 1.0) / size  # two views side by side just fit into the world at 2x
        room = max(0.5 - pitch * size, 0.0)
        x, y = (float(c) for c in rng.uniform(-room, room, size=2))
        whole = Region(left=x - pitch * size, top=y - pitch * size, pitch=pitch, width=2 * size, height=2 * size)
        world = int(rng.integers(2**31))
        image = renderer.image(world, whole)
        worst = 0.0
        for across in (0, size):
            for down in (0, size):
                tile = renderer.image(world, whole.part(across, down, size, size))
                error = (tile - image[:, down : down + size, across : across + size]).abs()
                column, row = (-1 if across == 0 else 0), (-1 if down == 0 else 0)
                worst = max(worst, float(error[:, :, column].max()), float(error[:, row, :].max()))
        steps.append(worst * 127.5)
    return np.array(steps)


def _measured(model: Model) -> Result:
    renderer = model.renderer

    def work(octave: int, indices: list[int]) -> list[float]:
        return list(seam_steps(renderer, octave, model.seed, indices))

    worst = [float(np.max(steps)) for steps in model.shared_by_octave(work, 8)]
    return {"value": max(worst), "octaves": worst}


KINDS.add(
    ViewKind(
        name="seam",
        description="largest step across the borders of tiles",
        count=4,
        per="octave",
        rendered=lambda count, octaves: 8 * count * octaves,  # four tiles, and the area of four
        measured=_measured,
    )
)

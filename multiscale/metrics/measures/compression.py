"""Bytes of the model against those of the pyramid of images that it stands for.

Shapes: C channels, N side of a view in pixels, S octaves.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from multiscale.metrics.measure import KINDS, Result
from multiscale.metrics.render import Model, ViewKind
from torch_utils.random import stream

if TYPE_CHECKING:
    from multiscale.rendering.renderer import Renderer

ENCODINGS = {
    "png": {"format": "png", "optimize": True},
    "jpeg": {"format": "jpeg", "quality": 90},
    "webp": {"format": "webp", "quality": 90},
}
"""How the pyramid would be kept; PNG loses nothing."""


def tile_bytes(renderer: Renderer, level: int, seed: int, indices: Sequence[int]) -> dict[int, dict[str, float]]:
    """Bytes a pixel of encoded tiles of N x N pixels at zoom 2^level, one world and place for each index."""
    from multiscale.rendering.renderer import to_uint8  # here: PyTorch takes seconds
    from multiscale.view import Region

    found = {}
    for index in indices:
        rng = stream(seed, "measure compression", level, index)
        limit = (1 - 2.0**-level) / 2
        x, y = rng.uniform(-limit, limit, size=2)
        world = int(rng.integers(2**31))
        region = Region.of_view(2.0**level, (float(x), float(y)), renderer.resolution, renderer.resolution)
        pixels = to_uint8(renderer.image(world, region))
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        found[index] = {name: _encoded(picture, options) / pixels[..., 0].size for name, options in ENCODINGS.items()}
    return found


def pyramid_pixels(resolution: int, octaves: int) -> list[int]:
    """Pixels of each level of the pyramid of one world: N 2^level squared."""
    return [(resolution * 2**level) ** 2 for level in range(octaves + 1)]


def _encoded(picture: Image.Image, options: dict[str, object]) -> int:
    stream = io.BytesIO()
    picture.save(stream, **options)  # type: ignore[arg-type]
    return stream.tell()


def _measured(model: Model) -> Result:
    renderer, shape = model.renderer, model.shape
    pixels = pyramid_pixels(shape.resolution, shape.octaves)
    totals = dict.fromkeys(ENCODINGS, 0.0)
    for level, area in enumerate(pixels):

        def work(indices: list[int], level: int = level) -> list[dict[str, float]]:
            return list(tile_bytes(renderer, level, model.seed, indices).values())

        tiles = model.shared(work, 1)
        for name in totals:
            totals[name] += area * float(np.mean([tile[name] for tile in tiles]))
    held = sum(tensor.nbytes for tensor in model.generator.state_dict().values())
    raw = shape.channels * sum(pixels)
    return {
        "value": totals["png"] / held,
        "model_bytes": held,
        "raw_bytes": raw,
        **{f"{name}_bytes": round(total) for name, total in totals.items()},
        **{f"{name}_ratio": total / held for name, total in (("raw", raw), *totals.items())},
    }


KINDS.add(
    ViewKind(
        name="compression",
        description="bytes of the model against the pyramid it stands for",
        count=16,
        per="octave",
        better="higher",
        rendered=lambda count, octaves: count * (octaves + 1),
        measured=_measured,
    )
)

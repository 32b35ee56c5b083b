"""Measures of whole worlds: steps across tiles, agreement with a scene that is known, and bytes saved.

Shapes: C channels, N side of a view in pixels, S octaves.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.data.procedural import render_batch
from multiscale.rendering.renderer import Renderer, to_uint8
from multiscale.view import Region
from torch_utils.random import stream

SCENE_SEEDS = 1000
"""Planets that labels are tried against."""
ENCODINGS = {
    "png": {"format": "png", "optimize": True},
    "jpeg": {"format": "jpeg", "quality": 90},
    "webp": {"format": "webp", "quality": 90},
}
"""How the pyramid would be kept; PNG loses nothing."""


def seam_steps(renderer: Renderer, octave: int, seed: int, indices: Sequence[int]) -> np.ndarray:
    """The largest step across tile borders in each of several worlds, in levels of 255: float [B].

    Four tiles of N x N pixels that meet in a point are rendered each on its own, and once more all in one image. At the
    pixels on both sides of the borders the difference is what tiling adds: a seam is seen if it is 1 or more.
    """
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


def scene_seed(dataset: PatchDataset) -> int:
    """Which planet of ``dataset_tool.py demo`` the patches show, recognised by the label of its first patch.

    Raises:
        UserError: the patches are of something else.
    """
    label = dataset.labels[0]
    for seed in range(SCENE_SEEDS if dataset.num_channels == 3 else 0):
        if abs(stream(seed, "demo", 0, 0).random() - label) < 1e-6:
            return seed
    raise UserError(
        f"The measure 'truth' needs a scene that is known, and the labels of {dataset.path} are not those of "
        "'python dataset_tool.py demo'; leave the measure out."
    )


def scene_patches(transform: torch.Tensor, size: int, seed: int) -> np.ndarray:
    """The planet itself in these views [B, 3, 3]: uint8 [B, 3, N, N]."""
    centres, zooms = transform[:, :2, 2].numpy(), 1 / transform[:, 0, 0].numpy()
    images = render_batch(centres, zooms, size, seed)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def tile_bytes(renderer: Renderer, level: int, seed: int, indices: Sequence[int]) -> dict[int, dict[str, float]]:
    """Bytes a pixel of encoded tiles of N x N pixels at zoom 2^level, one world and place for each index."""
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

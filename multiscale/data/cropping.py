"""Patches of pictures: each drawn by a random stream of its own, cut where the picture is not empty, and encoded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dnnlib.errors import UserError
from multiscale.data.container import encode_png
from multiscale.data.cutting import Box, Source, cut_square, plan_cut
from multiscale.data.pictures import Place, open_source, shorter_side
from multiscale.data.remote import RemotePicture
from multiscale.data.vips import Reading, Unreadable
from torch_utils.random import stream

CROPS_A_JOB = 16
EMPTY_DRAWS = 200
"""Places to try for a patch, where a picture is empty in parts."""
Patches = list[tuple[bytes, float]]
"""PNG files with their labels."""


class Crop(NamedTuple):
    """A patch to cut: its random stream is named by octave and number, its label is drawn between two ends."""

    octave: int
    number: int
    low: float
    high: float


class CropJob(NamedTuple):
    """Patches of one picture.

    Attributes:
        place: The picture.
        base: Label of all of it, as far as its shorter side shows it: 0 where it is a world of its own.
        reading: How it is read.
        mode: ``L`` or ``RGB``, of the patches.
        resolution: N.
        seed: Of the draws.
        allow_empty: Share of a patch that may be empty.
        crops: Its patches.
    """

    place: Place
    base: float
    reading: Reading
    mode: str
    resolution: int
    seed: int
    allow_empty: float
    crops: tuple[Crop, ...]


def parts_of(picture: RemotePicture, jobs: Sequence[CropJob]) -> Iterator[tuple[Box, int]]:
    """What patches need of a picture, as they are drawn first."""
    levels = picture.tiling.levels()
    for job in jobs:
        for crop in job.crops:
            cut = plan_cut(levels, *next(_views(job, crop))[1], job.resolution)
            yield cut.box, cut.shrink


def cut_patches(job: CropJob) -> Patches:
    """Cut and encode; UserError if the picture is damaged, or has no place for a patch that is not empty."""
    try:
        source = open_source(job.place, job.reading)
        return [_cut_crop(source, job, crop) for crop in job.crops]
    except Unreadable as error:
        raise UserError(f"Image {job.place.name} {error}.") from error


def _views(job: CropJob, crop: Crop) -> Iterator[tuple[float, tuple[float, float, float]]]:
    """Label, side in pixels and place of a patch, as it is drawn first, and if that is empty then, and so on."""
    rng = stream(job.seed, "make", crop.octave, crop.number)
    shown = shorter_side(job.place)
    while True:
        label = crop.low + rng.random() * (crop.high - crop.low)
        side = min(max(shown / 2 ** (label - job.base), job.resolution), shown)
        yield label, (side, rng.random(), rng.random())


def _cut_crop(source: Source, job: CropJob, crop: Crop) -> tuple[bytes, float]:
    least = 1.0
    for label, view in itertools.islice(_views(job, crop), EMPTY_DRAWS):
        pixels, empty = cut_square(source, *view, job.resolution)
        if empty <= job.allow_empty:
            if pixels.ndim == 2 and job.mode == "RGB":
                pixels = np.repeat(pixels[..., None], 3, axis=2)
            return encode_png(pixels), label
        least = min(least, empty)
    percent = math.ceil(least * 100)  # rounded up: as an option it lets the patch pass
    advice = f"the least empty has {percent}%; raise --allow-empty to {percent / 100:g} or more, or crop the image"
    raise UserError(
        f"Of {EMPTY_DRAWS} patches of octave {crop.octave} in {source.describe()} none has at most "
        f"{job.allow_empty:.0%} of empty area; {'all are empty; crop the image' if least == 1 else advice}."
    )

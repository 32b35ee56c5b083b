"""A set from pictures of one kind of scene at different scales, none of which says where it was taken.

A picture that shows a square of side E of a scene whose world has the side W begins at s = log2(W/E), and has patches down to
where one pixel of a patch is one of its own. So a picture gives patches of several octaves, and each s is had from several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnnlib.errors import UserError
from multiscale.data.charts import covered, gaps
from multiscale.data.container import check_dest
from multiscale.data.cropping import CROPS_A_JOB, Crop, CropJob, cut_patches
from multiscale.data.extents import read_extents
from multiscale.data.finding import find_pictures
from multiscale.data.patches import MAX_OCTAVES
from multiscale.data.pictures import Picture, forget_sources, shorter_side
from multiscale.data.prepare import (
    check_resolution,
    paper_counts,
    resolved_counts,
    say_empty,
    say_fewer,
    say_plan,
    write_patches,
)
from multiscale.data.process_pool import process_count
from multiscale.data.remote import is_remote
from multiscale.data.source import counted, listed
from multiscale.data.vips import Reading
from torch_utils.random import stream

LEAST_OF_AN_OCTAVE = 0.05
"""Part of the finest octave that pictures must reach for it to be one, where the number of octaves is not given."""


class Span(NamedTuple):
    """The labels that a picture has patches of, from all of it to its own pixels."""

    low: float
    high: float


def span_of(picture: Picture, extent: float, world: float, resolution: int) -> Span:
    """From s = log2(W/E), or 0 if it shows more than the world, to where a patch has the picture's own pixels."""
    base = math.log2(world / extent)
    return Span(max(base, 0.0), base + math.log2(shorter_side(picture) / resolution))


def make_collection(
    source: str | Path,
    dest: str | Path,
    *,
    scales: str,
    world: float | None = None,
    resolution: int = 256,
    octaves: int | None = None,
    counts: Sequence[int] | None = None,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    default_counts: Callable[[int], tuple[int, ...]] = paper_counts,
    reading: Reading | None = None,
    skip_bad: bool = False,
    allow_empty: float = 0.0,
    dry_run: bool = False,
) -> None:
    """Sample pictures of known extent. In octave j, s is uniform over what of [j, j + 1) pictures have; pictures take turns.

    Args:
        source: Folder (searched to any depth) or image.
        dest: ZIP or folder to write.
        scales: Where extents come from: see :func:`multiscale.data.extents.read_extents`.
        world: Side of the world, s = 0, in the unit of the extents; None: the largest extent.
        octaves: S >= 1; None: as many as there are ``counts``, else as the pictures reach, at most 10.
        counts: Patches of each octave, coarse to fine; None: ``default_counts``.
        resolution, seed, workers, force, default_counts, reading, skip_bad, allow_empty, dry_run: As for
            :func:`multiscale.data.prepare.make_from_photographs`.

    Raises:
        UserError: tiles on a server; pictures that cannot be read or have no scale (all are named); an octave of which there is
            no picture; as ``make_from_photographs``.
    """
    if is_remote(str(source)):
        raise UserError(f"{source} is a picture as tiles, and collect reads files; give it to make, or a folder here.")
    source, dest, processes = Path(source), Path(dest), process_count(workers)
    forget_sources()
    if not dry_run:
        check_dest(dest, force=force)
    check_resolution(resolution)
    if world is not None and not (math.isfinite(world) and world > 0):
        raise UserError(f"--world {world:g} is not allowed; give the side of the world, above 0.")
    pictures, reading = find_pictures(source, reading or Reading(), processes, skip_bad=skip_bad, least_px=resolution)
    extents = read_extents(scales, pictures, source)
    world = max(extents) if world is None else world
    spans = [span_of(picture, extent, world, resolution) for picture, extent in zip(pictures, extents, strict=True)]
    _check_spans(pictures, spans, resolution, world)
    if octaves is None and counts is not None:
        say_fewer(counts, _octaves(spans, None), "the pictures reach")
    octaves = _octaves(spans, octaves or len(counts or ()) or None)
    counts = resolved_counts(counts, octaves, default_counts)
    holes = gaps(spans, octaves)
    for octave in range(octaves):
        if not covered(spans, octave, octave + 1):
            low, high = next((low, high) for low, high in holes if low <= octave and high >= octave + 1)
            raise UserError(f"No picture between s = {low:.2f} and {high:.2f}: {_advice(spans, low)}.")
    dealt = _deal(spans, counts, seed)
    mode = "L" if all(picture.grey for picture in pictures) else "RGB"
    jobs = [
        CropJob(
            picture,
            math.log2(world / extent),
            reading,
            mode,
            resolution,
            seed,
            allow_empty,
            tuple(crops[i : i + CROPS_A_JOB]),
        )
        for picture, extent, crops in zip(pictures, extents, dealt, strict=True)
        for i in range(0, len(crops), CROPS_A_JOB)
    ]
    say_plan(dest, counts, resolution, mode, dry_run=dry_run)
    if dry_run:
        say_empty(pictures, allow_empty)
    else:
        facts = {"pictures": [list(span) for span in spans]}
        write_patches(dest, cut_patches, jobs, counts, workers=processes, force=force, facts=facts)
    used = [(extent, span.high) for extent, span, crops in zip(extents, spans, dealt, strict=True) if crops]
    least, most = min(extent for extent, _ in used), max(extent for extent, _ in used)
    print(
        f"from {counted(len(used), 'picture')} of extents {least:g} to {most:g}, world {world:g}, "
        f"s = 0 ... {min(max(high for _, high in used), octaves):.2f}"
    )
    for low, high in holes:
        print(f"no picture between s = {low:.2f} and {high:.2f}")
    forget_sources()


def _check_spans(pictures: Sequence[Picture], spans: Sequence[Span], resolution: int, world: float) -> None:
    small = [p.name for p, span in zip(pictures, spans, strict=True) if shorter_side(p) < resolution]
    if small:
        raise UserError(
            f"{counted(len(small), 'picture')} with fewer than {resolution} pixels on the shorter side: "
            f"{listed(small, '; ', 20)}; give a smaller --resolution, or leave them out."
        )
    if not any(span.high > span.low for span in spans):
        raise UserError(
            f"No picture has a patch of a world of {world:g}; all show more than it: give a larger --world."
        )


def _octaves(spans: Sequence[Span], wanted: int | None) -> int:
    deepest = max(span.high for span in spans)
    if wanted is None:
        return min(max(math.ceil(deepest - LEAST_OF_AN_OCTAVE), 1), MAX_OCTAVES)
    if deepest <= wanted - 1:
        raise UserError(
            f"{wanted} octaves were asked for, and the pictures reach s = {deepest:.2f}; give fewer --octaves."
        )
    return wanted


def _advice(spans: Sequence[Span], low: float) -> str:
    if low == 0:
        return f"the first begins at {min(span.low for span in spans):.2f}; give a smaller --world, or pictures that show more"
    return "add pictures of such scales, or give fewer --octaves"


def _deal(spans: Sequence[Span], counts: Sequence[int], seed: int) -> list[list[Crop]]:
    """Patches of each picture: s by a stream of its own, the picture the one of those that have s which has fewest so far."""
    dealt: list[list[Crop]] = [[] for _ in spans]
    lows, highs = np.array([span.low for span in spans]), np.array([span.high for span in spans])
    for octave, count in enumerate(counts):
        pieces = covered(spans, octave, octave + 1)
        ends = np.cumsum([high - low for low, high in pieces])
        taken = stream(seed, "pictures", octave).permutation(len(spans)) / len(spans)  # ties go by chance
        for number in range(count):
            place = stream(seed, "labels", octave, number).random() * ends[-1]
            piece = min(int(np.searchsorted(ends, place, side="right")), len(pieces) - 1)
            label = pieces[piece][1] - (ends[piece] - place)
            having = np.flatnonzero((lows <= label) & (label <= highs))
            if not len(having):  # an end of a piece, rounded
                having = np.array([int(np.argmin(np.maximum(lows - label, label - highs)))])
                label = min(max(label, float(lows[having[0]])), float(highs[having[0]]))
            chosen = having[np.argmin(taken[having])]
            taken[chosen] += 1
            dealt[chosen].append(Crop(octave, number, label, label))
    return dealt

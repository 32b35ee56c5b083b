"""Flights through a world: the places that they pass, and the view at each moment, at constant zoom speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Keyframe:
    """Where a flight passes: zoom factor and world coordinates of the centre."""

    zoom: float
    x: float
    y: float


def zoom_path(keyframes: Sequence[Keyframe], frames: int) -> list[tuple[float, tuple[float, float]]]:
    """Zoom and centre of each frame of a flight, the first and last keyframe included.

    Between two keyframes the zoom grows by the same factor from frame to frame, and the centre moves linearly in 1/zoom: a
    straight flight towards one fixed point, which never leaves the world. Keyframes of one zoom are joined by a pan. Every
    leg takes time by its length: octaves of zoom, or widths of the view where that is more, so that the speed is constant.

    Args:
        keyframes: Two or more.
        frames: One or more.
    """
    lengths = [_length(a, b) for a, b in zip(keyframes[:-1], keyframes[1:], strict=True)]
    ends = np.cumsum([0.0, *lengths])
    path = []
    for position in np.linspace(0, ends[-1], frames):
        leg = min(int(np.searchsorted(ends, position, side="right")) - 1, len(lengths) - 1)
        fraction = (position - ends[leg]) / lengths[leg] if lengths[leg] else 0.0
        path.append(_between(keyframes[leg], keyframes[leg + 1], min(float(fraction), 1.0)))
    return path


def _length(a: Keyframe, b: Keyframe) -> float:
    """Octaves of zoom between two keyframes, or widths of the (narrower) view that the centre moves, if that is more."""
    octaves = abs(math.log2(b.zoom / a.zoom))
    widths = math.hypot(b.x - a.x, b.y - a.y) * min(a.zoom, b.zoom)
    return max(octaves, widths)


def _between(a: Keyframe, b: Keyframe, fraction: float) -> tuple[float, tuple[float, float]]:
    zoom = a.zoom * (b.zoom / a.zoom) ** fraction
    moved = fraction if math.isclose(a.zoom, b.zoom) else (1 / a.zoom - 1 / zoom) / (1 / a.zoom - 1 / b.zoom)
    return zoom, (a.x + (b.x - a.x) * moved, a.y + (b.y - a.y) * moved)

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


RAMP = 0.25
"""Share of the time between two turns of a loop in which speed rises; as much in which it falls."""
STRAIGHT = 0.999
"""Cosine of the angle between two legs (in widths of the view and octaves) from which on they count as one."""


def zoom_path(
    keyframes: Sequence[Keyframe], frames: int, *, loop: bool = False
) -> list[tuple[float, tuple[float, float]]]:
    """Zoom and centre of each frame of a flight, the first and last keyframe included.

    Between two keyframes the zoom grows by the same factor from frame to frame, and the centre moves linearly in 1/zoom: a
    straight flight towards one fixed point, which never leaves the world. Keyframes of one zoom are joined by a pan. Every
    leg takes time by its length: octaves of zoom, or widths of the view where that is more, so that the speed is constant.

    Args:
        keyframes: One (which stays) or more.
        frames: One or more.
        loop: Fly back to the first keyframe in the end, so that after the last frame comes the first. Speed falls to zero and
            rises again where the flight begins and at each keyframe at which it turns.
    """
    places = [*keyframes, keyframes[0]] if loop else list(keyframes)
    legs = [leg for leg in zip(places[:-1], places[1:], strict=True) if _length(*leg) > 1e-9]
    if not legs:
        return [(places[0].zoom, (places[0].x, places[0].y))] * frames
    lengths = [_length(*leg) for leg in legs]
    ends = np.cumsum([0.0, *lengths])
    positions = np.linspace(0, ends[-1], frames, endpoint=not loop)
    if loop:
        directions = [_direction(*leg) for leg in legs]
        turns = [i for i in range(1, len(legs)) if directions[i - 1] @ directions[i] < STRAIGHT]
        positions = _softened(positions, ends[[0, *turns, len(legs)]])
    path = []
    for position in positions:
        leg = min(int(np.searchsorted(ends, position, side="right")) - 1, len(lengths) - 1)
        path.append(_between(*legs[leg], min(float((position - ends[leg]) / lengths[leg]), 1.0)))
    return path


def _softened(positions: np.ndarray, rests: np.ndarray) -> np.ndarray:
    """Positions as functions of time, at constant speed before, but now at rest at some of them (the first and last too)."""
    stretch = np.clip(np.searchsorted(rests, positions, side="right") - 1, 0, len(rests) - 2)
    start, length = rests[stretch], np.diff(rests)[stretch]
    time = (positions - start) / length
    early = np.minimum(time, 1 - time)  # the second half mirrors the first
    moved = np.where(early < RAMP, early**2 / (2 * RAMP), early - RAMP / 2) / (1 - RAMP)
    return start + length * np.where(time <= 0.5, moved, 1 - moved)


def _direction(a: Keyframe, b: Keyframe) -> np.ndarray:
    """Direction of a leg in octaves of zoom and widths of the view, x and y, the same all along it: a unit vector [3]."""
    octaves = math.log2(b.zoom / a.zoom)
    widths = a.zoom if math.isclose(a.zoom, b.zoom) else octaves * math.log(2) / (1 / a.zoom - 1 / b.zoom)
    step = np.array([octaves, (b.x - a.x) * widths, (b.y - a.y) * widths])
    return step / np.linalg.norm(step)


def _length(a: Keyframe, b: Keyframe) -> float:
    """Octaves of zoom between two keyframes, or widths of the (narrower) view that the centre moves, if that is more."""
    octaves = abs(math.log2(b.zoom / a.zoom))
    widths = math.hypot(b.x - a.x, b.y - a.y) * min(a.zoom, b.zoom)
    return max(octaves, widths)


def _between(a: Keyframe, b: Keyframe, fraction: float) -> tuple[float, tuple[float, float]]:
    zoom = a.zoom * (b.zoom / a.zoom) ** fraction
    moved = fraction if math.isclose(a.zoom, b.zoom) else (1 / a.zoom - 1 / zoom) / (1 / a.zoom - 1 / b.zoom)
    return zoom, (a.x + (b.x - a.x) * moved, a.y + (b.y - a.y) * moved)

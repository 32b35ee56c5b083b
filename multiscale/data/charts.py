"""Which scales a set has: patches and pictures over s, as lines of text, and the gaps between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS_AN_OCTAVE = 4
BAR_CHARACTERS = 32
LEAST_GAP = 0.05
"""In s, of pictures: what is less is not worth a word."""
LEAST_PATCH_GAP = 0.1
LUCK = 20.0
"""A gap between patches is one where so many would be expected."""


def covered(spans: Sequence[tuple[float, float]], low: float, high: float) -> list[tuple[float, float]]:
    """What of [low, high] the spans cover, as pieces in order that do not touch."""
    pieces: list[tuple[float, float]] = []
    for a, b in sorted((max(a, low), min(b, high)) for a, b in spans):
        if b <= a:
            continue
        if pieces and a <= pieces[-1][1]:
            pieces[-1] = (pieces[-1][0], max(pieces[-1][1], b))
        else:
            pieces.append((a, b))
    return pieces


def gaps(spans: Sequence[tuple[float, float]], octaves: int) -> list[tuple[float, float]]:
    """What of [0, octaves] the spans leave out, where it is more than ``LEAST_GAP``."""
    pieces = covered(spans, 0, octaves)
    ends = [0.0, *(end for piece in pieces for end in piece), float(octaves)]
    return [(low, high) for low, high in zip(ends[::2], ends[1::2], strict=True) if high - low > LEAST_GAP]


def patch_gaps(labels: np.ndarray, octaves: int) -> list[tuple[float, float]]:
    """Stretches without a patch where, as its octaves are filled, ``LUCK`` would be expected or more."""
    ends = np.concatenate([[0.0], np.sort(labels), [float(octaves)]])
    counts = np.histogram(labels, np.arange(octaves + 1))[0]
    found = []
    for i in np.flatnonzero(np.diff(ends) > LEAST_PATCH_GAP):
        low, high = float(ends[i]), float(ends[i + 1])
        edges = np.clip(np.arange(octaves + 1), low, high)
        if (np.diff(edges) * counts).sum() >= LUCK or high - low >= 1:
            found.append((low, high))
    return found


def scale_chart(labels: np.ndarray, octaves: int, spans: Sequence[tuple[float, float]]) -> list[str]:
    """A line for each quarter of an octave, then one for each gap.

    Args:
        labels: float [n], s of each patch.
        octaves: Of the set.
        spans: Labels, lowest and highest, that each picture has; empty where pictures are not known.
    """
    edges = np.arange(octaves * BINS_AN_OCTAVE + 1) / BINS_AN_OCTAVE
    counts = np.histogram(labels, edges)[0]
    most = max(int(counts.max()), 1)
    lines = [f"{'s':>13} {'patches':>9} {'':{BAR_CHARACTERS}}{'  pictures' if spans else ''}".rstrip()]
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = "#" * max(round(BAR_CHARACTERS * count / most), int(count > 0))
        line = f"{low:5.2f} - {high:5.2f} {count:9,d} {bar:{BAR_CHARACTERS}}"
        if spans:
            line += f"{sum(a < high and b > low for a, b in spans):10,d}"
        lines.append(line.rstrip())
    holes, what = (gaps(spans, octaves), "picture") if spans else (patch_gaps(labels, octaves), "patch")
    return lines + [f"no {what} between s = {low:.2f} and {high:.2f}" for low, high in holes]

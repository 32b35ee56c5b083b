"""Grids and lattices of the procedural scene: where samples lie, how fields change their rate, what a cell draws.

Shapes: B views, n samples a side of a grid, N pixels a side of a view; fields [..., B, n, n] in float32.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy.signal import firwin, kaiser_beta

SUPERSAMPLING = 2
"""Samples a pixel on the finest grid."""

HALF_TAPS_PX = 6
"""Half width of the low-pass, and margin drawn around a view, in pixels."""

_DOUBLE_PAD = 3


class Grid(NamedTuple):
    """Samples at x0 + j spacing, y0 + i spacing for 0 <= i, j < n; world units, float64 [B] each."""

    x0: np.ndarray
    y0: np.ndarray
    spacing: np.ndarray
    n: int

    def linear(self, along_x: float, along_y: float) -> tuple[np.ndarray, np.ndarray]:
        """The two parts, over columns and over rows, of along_x x + along_y y: float64 [B, n] each."""
        steps = np.arange(self.n) * self.spacing[:, None]
        return along_x * (self.x0[:, None] + steps), along_y * (self.y0[:, None] + steps)


def lattice_axis(grid: Grid, along_x: float, along_y: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """along_x x + along_y y + offset - base on a grid, float32 [B, n, n], and its integer base near the centre, [B]."""
    over_x, over_y = grid.linear(along_x, along_y)
    middle = grid.n // 2
    base_x, base_y = np.floor(over_x[:, middle, None]), np.floor(over_y[:, middle, None])
    columns = (over_x - base_x).astype(np.float32)
    rows = (over_y - base_y + offset).astype(np.float32)
    return columns[:, None, :] + rows[:, :, None], (base_x + base_y)[:, 0].astype(np.int64)


def plane_wave(grid: Grid, frequency: float, angle: float, phase: float) -> np.ndarray:
    """sin 2 pi (frequency along a direction + phase), float32 [B, n, n]; sin(a + b) from the waves over x and y."""
    rate = 2 * math.pi * frequency
    over_x, over_y = grid.linear(rate * math.cos(2 * math.pi * angle), rate * math.sin(2 * math.pi * angle))
    over_y += 2 * math.pi * phase
    columns = np.stack([np.sin(over_x), np.cos(over_x)], axis=1).astype(np.float32)
    rows = np.stack([np.cos(over_y), np.sin(over_y)], axis=2).astype(np.float32)
    return rows[:, :, :1] * columns[:, :1] + rows[:, :, 1:] * columns[:, 1:]


def _mix(x: np.ndarray) -> np.ndarray:
    """One round of the splitmix64 generator, uint64 -> uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def lattice_key(seed: int, octave: int, part: int) -> int:
    """A 64-bit key for one kind of landform of one octave of one planet."""
    words = np.random.SeedSequence([seed, octave, part]).generate_state(1, np.uint64)
    return int(words[0])


def uniform(key: int, count: int) -> list[float]:
    """``count`` numbers in [0, 1) from a key."""
    values = _mix(_mix(np.array([key], np.uint64)) + np.arange(count, dtype=np.uint64))
    return [float(value) * 2.0**-64 for value in values]


def hash_cells(key: int, u: np.ndarray, v: np.ndarray, count: int) -> np.ndarray:
    """Uniform noise in [0, 1), float64 [count, B, rows, columns], of cells u int64 [B, 1, columns], v [B, rows, 1]."""
    cells = _mix(_mix(u.view(np.uint64) ^ np.uint64(key)) + v.view(np.uint64))
    streams = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    return (_mix(cells[None] + streams[:, None, None, None]) >> np.uint64(11)) * 2.0**-53


def coarser(grid: Grid) -> Grid:
    """The grid of half the rate that ``double`` turns into ``grid``: fine sample j sits at coarse j/2 + pad - 1/4."""
    shift = grid.spacing * (0.5 - 2 * _DOUBLE_PAD)
    return Grid(grid.x0 + shift, grid.y0 + shift, 2 * grid.spacing, (grid.n + 1) // 2 + 2 * _DOUBLE_PAD)


def double(fields: np.ndarray, n: int) -> np.ndarray:
    """Interpolate [2, B, m, m] to twice the rate, [2, B, n, n], with six-point Lagrange polynomials."""
    return _double_rows(_double_rows(fields, n).swapaxes(2, 3), n).swapaxes(2, 3)


def _double_rows(fields: np.ndarray, n: int) -> np.ndarray:
    """[2, B, m, k] -> [2, B, n, k]: row 2 i draws on rows i ... i + 5, row 2 i + 1 on rows i + 1 ... i + 6."""
    result = np.empty((*fields.shape[:2], n, fields.shape[3]), np.float32)
    for parity, taps in enumerate((_DOUBLING_TAPS, _DOUBLING_TAPS[::-1])):
        count = (n + 1 - parity) // 2
        result[:, :, parity::2] = _weighted_rows(fields, taps, parity, 1, count)
    return result


def decimate(fields: np.ndarray, size: int) -> np.ndarray:
    """Low-pass and decimate [B, n, n] to [B, N, N]."""
    rows = _decimate_rows(fields, size).swapaxes(1, 2)
    return np.ascontiguousarray(_decimate_rows(rows, size).swapaxes(1, 2))


def _decimate_rows(fields: np.ndarray, size: int) -> np.ndarray:
    return _weighted_rows(fields, _lowpass_taps(), SUPERSAMPLING // 2, SUPERSAMPLING, size)


def _weighted_rows(fields: np.ndarray, taps: np.ndarray, first: int, step: int, count: int) -> np.ndarray:
    """Row i of the result is the sum of taps[t] times row first + step i + t; [..., m, k] -> [..., count, k].

    Plain sums, as matrix products of this size would wake all threads of the BLAS library in each worker process.
    """
    result = np.zeros((*fields.shape[:-2], count, fields.shape[-1]), np.float32)
    for image, total in zip(
        fields.reshape(-1, *fields.shape[-2:]), result.reshape(-1, *result.shape[-2:]), strict=True
    ):
        for t, tap in enumerate(taps):
            start = first + t
            total += tap * image[start : start + step * (count - 1) + 1 : step]
    return result


def _lagrange_taps() -> np.ndarray:
    nodes = range(-_DOUBLE_PAD, _DOUBLE_PAD)
    taps = [math.prod((-0.25 - j) / (k - j) for j in nodes if j != k) for k in nodes]
    return np.array(taps, np.float32)


_DOUBLING_TAPS = _lagrange_taps()


@functools.lru_cache(maxsize=1)
def _lowpass_taps() -> np.ndarray:
    """Kaiser-windowed sinc on the finest grid, float32 [24]: 45 dB down from the Nyquist frequency of the pixels on."""
    attenuation_db, width_px = 45.0, 2 * HALF_TAPS_PX
    transition = (attenuation_db - 7.95) / (14.36 * width_px)
    taps = firwin(
        width_px * SUPERSAMPLING,
        0.5 - transition / 2,
        window=("kaiser", kaiser_beta(attenuation_db)),
        fs=SUPERSAMPLING,
    )
    return taps.astype(np.float32)

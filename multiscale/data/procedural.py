"""An endless planetary surface for the demo: a world point holds the same landforms at every zoom, only sharper.

Two fields describe the surface, lightness L and warmth W, both in [-1, 1]. Octave after octave, coarse to fine, colour
provinces and craters of one size update them by

    L <- L + d (1 - L^2),      W <- W + e (1 - W^2),      |d|, |e| <= 1/2

which keeps them in range for ever. As d and e are zero in the mean over each landform, a coarser view is the average of
a finer one (a martingale over scales): leaving out the octaves below the pixels of a view takes away nothing but detail
that the view cannot show. Colour is bilinear in (L, W), between the four corners of a palette.

Band limit: an octave is drawn on the coarsest grid that holds ``_SAMPLES_PER_CELL`` samples a cell of its lattice, and
grids are doubled by band-limited interpolation, so that a view costs little more than its finest octave. Octaves fade
out smoothly as their cells shrink to a few pixels. The finest grid has ``SUPERSAMPLING`` samples a pixel; a Kaiser
low-pass whose stop band begins at the Nyquist frequency of the view takes it down to pixels.

Lattice coordinates are formed in float64 and reduced by an integer before they become float32; cells are hashed as
64-bit integers. Zoom is thus limited by float64 only: 10 octaves leave 30 bits to spare.

Shapes: B views, N pixels a side of a view, n samples a side of a grid, y down (rows), x to the right (columns).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.signal import firwin, kaiser_beta

SUPERSAMPLING = 2
"""Samples a pixel on the finest grid."""

PALETTE = np.array(
    [
        [[0.03, 0.10, 0.26], [0.72, 0.95, 1.00]],
        [[0.36, 0.05, 0.04], [1.00, 0.86, 0.45]],
    ],
    dtype=np.float32,
)
"""RGB in [0, 1] at (W, L) = (-1, -1): deep blue; (-1, 1): ice; (1, -1): dark rust; (1, 1): golden sand."""

_FIRST_CELL = 0.62
"""Lattice cell of octave 0, in world units."""

_SAMPLES_PER_CELL = 9.0
_FADE_CELLS_PX = (2.4, 4.8)
"""An octave is absent when its cells are narrower than the first, in full when wider than the second (pixels)."""

_HALF_TAPS_PX = 6
"""Half width of the low-pass, and margin drawn around a view, in pixels."""

_TABLE = 4096
_TO_SUN = (-0.62, -0.78)
_DOUBLE_PAD = 3


def render(
    centre_xy: tuple[float, float], scale_factor: float, size: int, seed: int = 0, *, as_float: bool = False
) -> np.ndarray:
    """Draw one square view of the scene; ``render_batch`` draws several and faster.

    Args:
        centre_xy: World coordinates of the centre, x to the right, y down. The scene has no border, but the world of a
            data set is [-1/2, 1/2]^2.
        scale_factor: Zoom factor Z >= 1; the view is 1/Z wide.
        size: Pixels a side N >= 1; pixel i is centred at (i + 1/2)/N - 1/2 of the view.
        seed: Which planet.
        as_float: Return float32 without rounding.

    Returns:
        uint8 [N, N, 3] RGB, or float32 [N, N, 3] nominally in [0, 1].
    """
    return render_batch(np.array([centre_xy]), np.array([scale_factor]), size, seed, as_float=as_float)[0]


def render_batch(
    centres: np.ndarray, scale_factors: np.ndarray, size: int, seed: int = 0, *, as_float: bool = False
) -> np.ndarray:
    """Draw square views; a view does not depend on the others in its batch.

    Args:
        centres: float [B, 2], world coordinates (x, y).
        scale_factors: float [B], zoom factors >= 1. Views of one octave (equal floor(log2 Z)) share their work.
        size: Pixels a side N >= 1.
        seed: Which planet.
        as_float: Return float32 without rounding.

    Returns:
        uint8 [B, N, N, 3] RGB, or float32 nominally in [0, 1].
    """
    centres, zooms = np.asarray(centres, dtype=np.float64), np.asarray(scale_factors, dtype=np.float64)
    if size < 1 or not (np.isfinite(centres).all() and np.isfinite(zooms).all() and (zooms >= 1).all()):
        raise ValueError("size and scale_factors must be at least 1, centres finite")
    result = np.empty((len(zooms), size, size, 3), np.float32)
    octaves = np.floor(np.log2(zooms))
    for octave in np.unique(octaves):
        chosen = octaves == octave
        fields = _surface(centres[chosen], zooms[chosen], size, seed, 2.0**-octave)
        result[chosen] = _colour(fields, size)
    return result if as_float else np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8)


def _colour(fields: np.ndarray, size: int) -> np.ndarray:
    """[2, B, n, n] fields -> float32 [B, N, N, 3]: low-pass L, W and L W, then mix the palette's corners with them."""
    lightness, warmth, product = (_decimate(field, size) for field in (*fields, fields[0] * fields[1]))
    (a, b), (c, d) = PALETTE / 4
    rgb = (a + b + c + d) + lightness[..., None] * (b + d - a - c)
    rgb += warmth[..., None] * (c + d - a - b)
    rgb += product[..., None] * (a + d - b - c)
    return rgb


class _Grid(NamedTuple):
    """Samples at x0 + j spacing, y0 + i spacing for 0 <= i, j < n; world units, float64 [B] each."""

    x0: np.ndarray
    y0: np.ndarray
    spacing: np.ndarray
    n: int

    def linear(self, along_x: float, along_y: float) -> tuple[np.ndarray, np.ndarray]:
        """The two parts, over columns and over rows, of along_x x + along_y y: float64 [B, n] each."""
        steps = np.arange(self.n) * self.spacing[:, None]
        return along_x * (self.x0[:, None] + steps), along_y * (self.y0[:, None] + steps)


def _surface(centres: np.ndarray, zooms: np.ndarray, size: int, seed: int, widest: float) -> np.ndarray:
    """The fields L, W on the finest grid: float32 [2, B, n, n], n = (N + 2 margin) supersampling.

    ``widest`` >= 1/Z chooses the grid of each octave, so that the choice is the same for all views of a zoom octave.
    """
    pixel = 1 / (zooms * size)
    n = (size + 2 * _HALF_TAPS_PX) * SUPERSAMPLING
    half = (n - 1) / 2 * pixel / SUPERSAMPLING
    grids = [_Grid(centres[:, 0] - half, centres[:, 1] - half, pixel / SUPERSAMPLING, n)]
    finest = widest / size / SUPERSAMPLING
    while finest * 2 ** len(grids) * _SAMPLES_PER_CELL <= _FIRST_CELL:
        grids.append(_coarser(grids[-1]))
    fields = np.zeros((2, len(zooms), grids[-1].n, grids[-1].n), np.float32)
    level, octave, cell = len(grids) - 1, 0, _FIRST_CELL
    while cell > _FADE_CELLS_PX[0] * float(pixel.min()):
        while level > 0 and finest * 2**level * _SAMPLES_PER_CELL > cell:
            level -= 1
            fields = _double(fields, grids[level].n)
        fade = _smoothstep((cell / pixel - _FADE_CELLS_PX[0]) / (_FADE_CELLS_PX[1] - _FADE_CELLS_PX[0]))
        _add_octave(fields, grids[level], octave, cell, fade.astype(np.float32)[:, None, None], seed)
        octave, cell = octave + 1, cell / 2
    for finer in reversed(grids[:level]):
        fields = _double(fields, finer.n)
    return fields


def _add_octave(fields: np.ndarray, grid: _Grid, octave: int, cell: float, fade: np.ndarray, seed: int) -> None:
    """Update L, W in place by one octave of the surface."""
    craters, provinces = (_stream(seed, octave, part) for part in range(2))
    _add_provinces(fields, grid, _PROVINCE_CELLS * cell, provinces, fade)
    _add_stamps(fields, grid, _CRATER_CELLS * cell, craters, _CRATERS, fade)


def _add_provinces(fields: np.ndarray, grid: _Grid, cell: float, key: int, fade: np.ndarray) -> None:
    """Patches of colour: smooth noise between the corners of a turned lattice; an odd curve widens its extremes."""
    angle, shift_u, shift_v = _uniform(key, 3)
    cos, sin = math.cos(2 * math.pi * angle), math.sin(2 * math.pi * angle)
    u, base_u = _lattice_axis(grid, cos / cell, sin / cell, shift_u)
    v, base_v = _lattice_axis(grid, -sin / cell, cos / cell, shift_v)
    iu, iv = np.floor(u), np.floor(v)
    u -= iu
    v -= iv
    low_u, low_v = int(iu.min()), int(iv.min())
    columns, rows = int(iu.max()) - low_u + 2, int(iv.max()) - low_v + 2
    corners_u = (base_u + low_u)[:, None, None] + np.arange(columns)
    corners_v = (base_v + low_v)[:, None, None] + np.arange(rows)[:, None]
    values = _widen(2 * _hash_cells(key, corners_u, corners_v, 2) - 1).astype(np.float32)
    first = (np.arange(len(base_u)) * (rows * columns) - low_v * columns - low_u).astype(np.int32)
    index = (iv * columns + iu).astype(np.int32)
    index += first[:, None, None]
    across, down = _smoothstep(u), _smoothstep(v)
    for field, corners, strength in zip(fields, values, _PROVINCE_STRENGTHS, strict=True):
        table = corners.ravel()
        upper = np.take(table, index)
        upper += across * (np.take(table, index + 1) - upper)
        lower = np.take(table, index + columns)
        lower += across * (np.take(table, index + columns + 1) - lower)
        upper += down * (lower - upper)
        _update(field, np.float32(strength) * _widen(upper), fade)


def _widen(x: np.ndarray) -> np.ndarray:
    """An odd curve from [-1, 1] onto [-1, 1] that is steep in the middle; keeps float32."""
    return x * (2 - np.abs(x))


def _add_stamps(fields: np.ndarray, grid: _Grid, cell: float, key: int, kinds: _Stamps, fade: np.ndarray) -> None:
    """Round landforms in the cells of a turned lattice: radial marks in L and W, and hill shading in L."""
    angle, shift_u, shift_v, *bend = _uniform(key, 7)
    cos, sin = math.cos(2 * math.pi * angle), math.sin(2 * math.pi * angle)
    u, base_u = _lattice_axis(grid, cos / cell, sin / cell, shift_u)
    v, base_v = _lattice_axis(grid, -sin / cell, cos / cell, shift_v)
    wobble = _plane_wave(grid, 1.2 / cell, bend[0], bend[1])
    wobble *= 0.07
    u += wobble
    v -= wobble
    iu, iv = np.floor(u), np.floor(v)
    u -= iu
    v -= iv
    low_u, low_v = int(iu.min()), int(iv.min())
    columns, rows = int(iu.max()) - low_u + 1, int(iv.max()) - low_v + 1
    cells_u = (base_u + low_u)[:, None, None] + np.arange(columns)
    cells_v = (base_v + low_v)[:, None, None] + np.arange(rows)[:, None]
    table = kinds.draw(_hash_cells(key, cells_u, cells_v, 5))
    first = (np.arange(len(base_u)) * (rows * columns) - low_v * columns - low_u).astype(np.int32)
    iv *= columns
    iv += iu
    index = iv.astype(np.int32)
    index += first[:, None, None]
    u -= np.take(table.x, index)
    v -= np.take(table.y, index)
    inverse = np.take(table.inverse_radius, index)
    u *= inverse
    v *= inverse
    q = u * u
    q += v * v
    np.minimum(q, 1, out=q)
    q *= _TABLE - 1
    profile = q.astype(np.int32)
    profile += np.take(table.row, index)
    u *= cos * _TO_SUN[0] + sin * _TO_SUN[1]
    v *= -sin * _TO_SUN[0] + cos * _TO_SUN[1]
    u += v
    u *= np.take(kinds.slope, profile)
    u += np.take(kinds.lightness, profile)
    _update(fields[0], u, fade)
    _update(fields[1], np.take(kinds.warmth, profile), fade)


def _update(field: np.ndarray, change: np.ndarray, fade: np.ndarray) -> None:
    """field <- field + fade change (1 - field^2), in place; |change| <= 1/2."""
    change *= fade
    room = field * field
    room *= change
    field += change
    field -= room


class _Cells(NamedTuple):
    """Draws for each cell, flat: centre inside the cell and 1/radius (in cells), and the first row of its profile."""

    x: np.ndarray
    y: np.ndarray
    inverse_radius: np.ndarray
    row: np.ndarray


class _Stamps:
    """Kinds of round landform, as profiles over q = (r/R)^2 in [0, 1].

    The marks have zero integral over q, which is to say zero mean over the disc; the hill shading is odd and has it
    too.

    Attributes:
        lightness, warmth: float32 [kinds * table].
        slope: float32 [kinds * table], times the offset from the centre along the direction of the sun, in radii.
    """

    def __init__(self, kinds: Sequence[_Kind], density: float) -> None:
        """``density``: share of the cells in use, 0 ... 1."""
        self.density, self.kinds = density, len(kinds)
        self.slope = np.concatenate([kind.slope() for kind in kinds]).astype(np.float32)
        self.lightness = np.concatenate([_balanced(kind.lightness) for kind in kinds]).astype(np.float32)
        self.warmth = np.concatenate([_balanced(kind.warmth) for kind in kinds]).astype(np.float32)
        reach = np.tile(_T, self.kinds)
        assert (np.abs(self.lightness) + np.abs(self.slope) * reach).max() <= 0.5
        assert np.abs(self.warmth).max() <= 0.5

    def draw(self, noise: np.ndarray) -> _Cells:
        """Turn uniform noise [5, ...] into cells; an unused cell has a radius so small that no sample meets it."""
        radius = 0.22 + 0.26 * noise[0]
        x, y = (radius + (1 - 2 * radius) * noise[i] for i in (1, 2))
        inverse = np.where(noise[4] < self.density, 1 / radius, 1e4)
        row = np.minimum((noise[3] * self.kinds).astype(np.int32), self.kinds - 1) * np.int32(_TABLE)
        x, y, inverse = (a.astype(np.float32).ravel() for a in (x, y, inverse))
        return _Cells(x, y, inverse, row.ravel())


_Q = np.linspace(0, 1, _TABLE)
_T = np.sqrt(_Q)
_EDGE = (1 - _Q) ** 2


class _Kind(NamedTuple):
    """Height, lightness and warmth of a landform over q, float64 [table], and the peak of its hill shading."""

    height: np.ndarray
    lightness: np.ndarray
    warmth: np.ndarray
    shading: float

    def slope(self) -> np.ndarray:
        """-dh/dq, scaled so that its shading peaks at ``shading``."""
        slope = -np.gradient(self.height * _EDGE, _Q)
        slope[-1] = 0
        return slope * (self.shading / np.abs(slope * _T).max())


def _balanced(profile: np.ndarray) -> np.ndarray:
    """Fade a profile to zero at the edge and subtract a broad ring so that its mean over the disc vanishes."""
    ring = _Q * (1 - _Q) ** 2
    profile = profile * _EDGE
    return profile - ring * (profile.mean() / ring.mean())


def _smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, 3 x^2 - 2 x^3 between; keeps float32."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _plateau(inner: float, outer: float) -> np.ndarray:
    return 1 - _smoothstep((_T - inner) / (outer - inner))


def _crater(*, shading: float, floor: float, rim: float, floor_warmth: float, rim_warmth: float) -> _Kind:
    """A flat floor of one colour inside a bright or dark rim."""
    flat, ring = _plateau(0.45, 0.62), np.exp(-(((_T - 0.66) / 0.09) ** 2))
    bowl = _plateau(0.2, 0.66)
    return _Kind(0.6 * ring - bowl, floor * flat + rim * ring, floor_warmth * flat + rim_warmth * ring, shading)


_CRATER_CELLS, _PROVINCE_CELLS = 1.5, 0.8
"""Lattice cells of the two layers, in cells of their octave."""

_PROVINCE_STRENGTHS = (0.12, 0.30)
"""Largest change of lightness and of warmth by a province."""

_CRATERS = _Stamps(
    [
        _crater(shading=0.12, floor=-0.36, rim=0.34, floor_warmth=-0.45, rim_warmth=0.25),
        _crater(shading=0.12, floor=-0.30, rim=0.36, floor_warmth=0.45, rim_warmth=-0.10),
        _crater(shading=0.20, floor=-0.25, rim=0.25, floor_warmth=0.00, rim_warmth=0.00),
        _crater(shading=0.10, floor=0.28, rim=-0.20, floor_warmth=0.42, rim_warmth=-0.20),
    ],
    density=0.4,
)


def _lattice_axis(grid: _Grid, along_x: float, along_y: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """along_x x + along_y y + offset - base on a grid, float32 [B, n, n], and its integer base near the centre, [B]."""
    over_x, over_y = grid.linear(along_x, along_y)
    middle = grid.n // 2
    base_x, base_y = np.floor(over_x[:, middle, None]), np.floor(over_y[:, middle, None])
    columns = (over_x - base_x).astype(np.float32)
    rows = (over_y - base_y + offset).astype(np.float32)
    return columns[:, None, :] + rows[:, :, None], (base_x + base_y)[:, 0].astype(np.int64)


def _plane_wave(grid: _Grid, frequency: float, angle: float, phase: float) -> np.ndarray:
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


def _stream(seed: int, octave: int, part: int) -> int:
    """A 64-bit key for one kind of landform of one octave of one planet."""
    words = np.random.SeedSequence([seed, octave, part]).generate_state(1, np.uint64)
    return int(words[0])


def _uniform(key: int, count: int) -> list[float]:
    """``count`` numbers in [0, 1) from a key."""
    values = _mix(_mix(np.array([key], np.uint64)) + np.arange(count, dtype=np.uint64))
    return [float(value) * 2.0**-64 for value in values]


def _hash_cells(key: int, u: np.ndarray, v: np.ndarray, count: int) -> np.ndarray:
    """Uniform noise in [0, 1), float64 [count, B, rows, columns], of cells u int64 [B, 1, columns], v [B, rows, 1]."""
    cells = _mix(_mix(u.view(np.uint64) ^ np.uint64(key)) + v.view(np.uint64))
    streams = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    return (_mix(cells[None] + streams[:, None, None, None]) >> np.uint64(11)) * 2.0**-53


def _coarser(grid: _Grid) -> _Grid:
    """The grid of half the rate that ``_double`` turns into ``grid``: fine sample j sits at coarse j/2 + pad - 1/4."""
    shift = grid.spacing * (0.5 - 2 * _DOUBLE_PAD)
    return _Grid(grid.x0 + shift, grid.y0 + shift, 2 * grid.spacing, (grid.n + 1) // 2 + 2 * _DOUBLE_PAD)


def _double(fields: np.ndarray, n: int) -> np.ndarray:
    """Interpolate [2, B, m, m] to twice the rate, [2, B, n, n], with six-point Lagrange polynomials."""
    return _double_rows(_double_rows(fields, n).swapaxes(2, 3), n).swapaxes(2, 3)


def _double_rows(fields: np.ndarray, n: int) -> np.ndarray:
    """[2, B, m, k] -> [2, B, n, k]: row 2 i draws on rows i ... i + 5, row 2 i + 1 on rows i + 1 ... i + 6."""
    result = np.empty((*fields.shape[:2], n, fields.shape[3]), np.float32)
    for parity, taps in enumerate((_DOUBLING_TAPS, _DOUBLING_TAPS[::-1])):
        count = (n + 1 - parity) // 2
        result[:, :, parity::2] = _weighted_rows(fields, taps, parity, 1, count)
    return result


def _decimate(fields: np.ndarray, size: int) -> np.ndarray:
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
    attenuation_db, width_px = 45.0, 2 * _HALF_TAPS_PX
    transition = (attenuation_db - 7.95) / (14.36 * width_px)
    taps = firwin(
        width_px * SUPERSAMPLING,
        0.5 - transition / 2,
        window=("kaiser", kaiser_beta(attenuation_db)),
        fs=SUPERSAMPLING,
    )
    return taps.astype(np.float32)

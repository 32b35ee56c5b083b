"""An endless planetary surface for the demo: a world point holds the same landforms at every zoom, only sharper.

Two fields describe the surface, lightness L and warmth W, both in [-1, 1]. Octave after octave, coarse to fine, colour
provinces and craters of one size update them by

    L <- L + d (1 - L^2),      W <- W + e (1 - W^2),      |d|, |e| <= 1/2

which keeps them in range for ever. As d and e are zero in the mean (over each crater, and over every few cells of the
provinces), a coarser view is the average of a finer one: leaving out the octaves below the pixels of a view takes away
nothing but detail that the view cannot show. Colour is bilinear in (L, W), between the four corners of a palette.

Band limit: an octave is drawn on the coarsest grid that holds ``_SAMPLES_PER_CELL`` samples a cell of its lattice, and
grids are doubled by band-limited interpolation, so that a view costs little more than its finest octave. Octaves fade
out smoothly as their cells shrink to a few pixels. The finest grid has ``SUPERSAMPLING`` samples a pixel; a Kaiser
low-pass whose stop band begins at the Nyquist frequency of the view takes it down to pixels.

Lattice coordinates are formed in float64 and reduced by an integer before they become float32; cells are hashed as
64-bit integers. Zoom is thus limited by float64 only: 10 octaves leave 30 bits to spare.

Shapes: B views, N pixels a side of a view, n samples a side of a grid, y down (rows), x to the right (columns).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from multiscale.data.procedural_grids import (
    HALF_TAPS_PX,
    SUPERSAMPLING,
    Grid,
    coarser,
    decimate,
    double,
    hash_cells,
    lattice_axis,
    lattice_key,
    plane_wave,
    uniform,
)

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
_PROVINCE_FADE_PX, _CRATER_FADE_PX = (0.8, 1.6), (3.0, 5.0)
"""A layer is absent when its lattice cells are narrower than the first, in full when wider than the second (pixels).

Provinces are smooth, about half a cycle a cell; craters fill a part of their cells only. Where they fade, either holds
nearly nothing that the pixels could show.
"""

_TABLE = 4096
_TO_SUN = (-0.62, -0.78)


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
    lightness, warmth, product = (decimate(field, size) for field in (*fields, fields[0] * fields[1]))
    (a, b), (c, d) = PALETTE / 4
    rgb = (a + b + c + d) + lightness[..., None] * (b + d - a - c)
    rgb += warmth[..., None] * (c + d - a - b)
    rgb += product[..., None] * (a + d - b - c)
    return rgb


def _surface(centres: np.ndarray, zooms: np.ndarray, size: int, seed: int, widest: float) -> np.ndarray:
    """The fields L, W on the finest grid: float32 [2, B, n, n], n = (N + 2 margin) supersampling.

    ``widest`` >= 1/Z chooses the grid of each octave, so that the choice is the same for all views of a zoom octave.
    """
    pixel = 1 / (zooms * size)
    n = (size + 2 * HALF_TAPS_PX) * SUPERSAMPLING
    half = (n - 1) / 2 * pixel / SUPERSAMPLING
    grids = [Grid(centres[:, 0] - half, centres[:, 1] - half, pixel / SUPERSAMPLING, n)]
    finest = widest / size / SUPERSAMPLING
    while finest * 2 ** len(grids) * _SAMPLES_PER_CELL <= _FIRST_CELL:
        grids.append(coarser(grids[-1]))
    fields = np.zeros((2, len(zooms), grids[-1].n, grids[-1].n), np.float32)
    level, octave, cell = len(grids) - 1, 0, _FIRST_CELL
    while _PROVINCE_CELLS * cell > _PROVINCE_FADE_PX[0] * float(pixel.min()):
        while level > 0 and finest * 2**level * _SAMPLES_PER_CELL > cell:
            level -= 1
            fields = double(fields, grids[level].n)
        _add_octave(fields, grids[level], octave, cell, pixel, seed)
        octave, cell = octave + 1, cell / 2
    for finer in reversed(grids[:level]):
        fields = double(fields, finer.n)
    return fields


def _add_octave(fields: np.ndarray, grid: Grid, octave: int, cell: float, pixel: np.ndarray, seed: int) -> None:
    """Update L, W in place by one octave of the surface; ``pixel``: world units, [B]."""
    craters, provinces = (lattice_key(seed, octave, part) for part in range(2))
    _add_provinces(
        fields, grid, _PROVINCE_CELLS * cell, provinces, _fade(_PROVINCE_CELLS * cell, pixel, _PROVINCE_FADE_PX)
    )
    fade = _fade(_CRATER_CELLS * cell, pixel, _CRATER_FADE_PX)
    if fade.any():
        _add_stamps(fields, grid, _CRATER_CELLS * cell, craters, _CRATERS, fade)


def _fade(cell: float, pixel: np.ndarray, limits_px: tuple[float, float]) -> np.ndarray:
    """Amplitude of a layer in each view, float32 [B, 1, 1]: 0 below the limits, 1 above."""
    low, high = limits_px
    return _smoothstep((cell / pixel - low) / (high - low)).astype(np.float32)[:, None, None]


def _add_provinces(fields: np.ndarray, grid: Grid, cell: float, key: int, fade: np.ndarray) -> None:
    """Patches of colour: smooth noise between the corners of a turned lattice."""
    angle, shift_u, shift_v = uniform(key, 3)
    cos, sin = math.cos(2 * math.pi * angle), math.sin(2 * math.pi * angle)
    u, base_u = lattice_axis(grid, cos / cell, sin / cell, shift_u)
    v, base_v = lattice_axis(grid, -sin / cell, cos / cell, shift_v)
    iu, iv = np.floor(u), np.floor(v)
    u -= iu
    v -= iv
    low_u, low_v = int(iu.min()), int(iv.min())
    columns, rows = int(iu.max()) - low_u + 2, int(iv.max()) - low_v + 2
    corners_u = (base_u + low_u)[:, None, None] + np.arange(-1, columns + 1)
    corners_v = (base_v + low_v)[:, None, None] + np.arange(-1, rows + 1)[:, None]
    values = _without_mean(_widen(2 * hash_cells(key, corners_u, corners_v, 2) - 1)).astype(np.float32)
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
        _update(field, np.float32(strength) * upper, fade)


def _widen(x: np.ndarray) -> np.ndarray:
    """An odd curve from [-1, 1] onto [-1, 1] that is steep in the middle; keeps float32."""
    return x * (2 - np.abs(x))


def _without_mean(values: np.ndarray) -> np.ndarray:
    """Subtract from each corner the binomial mean of its 3 x 3 neighbours, [..., r, c] -> [..., r - 2, c - 2].

    Noise between such corners has nearly no energy at frequencies far below those of its lattice, so that a view too
    coarse for it loses nothing without it. In range [-1, 1], out of range [-3/2, 3/2].
    """
    rows = (values[..., :-2, :] + values[..., 2:, :] + 2 * values[..., 1:-1, :]) / 4
    return values[..., 1:-1, 1:-1] - (rows[..., :-2] + rows[..., 2:] + 2 * rows[..., 1:-1]) / 4


def _add_stamps(fields: np.ndarray, grid: Grid, cell: float, key: int, kinds: _Stamps, fade: np.ndarray) -> None:
    """Round landforms in the cells of a turned lattice: radial marks in L and W, and hill shading in L."""
    angle, shift_u, shift_v, *bend = uniform(key, 7)
    cos, sin = math.cos(2 * math.pi * angle), math.sin(2 * math.pi * angle)
    u, base_u = lattice_axis(grid, cos / cell, sin / cell, shift_u)
    v, base_v = lattice_axis(grid, -sin / cell, cos / cell, shift_v)
    wobble = plane_wave(grid, 1.2 / cell, bend[0], bend[1])
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
    table = kinds.draw(hash_cells(key, cells_u, cells_v, 5))
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

_PROVINCE_STRENGTHS = (0.14, 0.33)
"""Two thirds of the largest change of lightness and of warmth by a province."""

_CRATERS = _Stamps(
    [
        _crater(shading=0.12, floor=-0.36, rim=0.34, floor_warmth=-0.45, rim_warmth=0.25),
        _crater(shading=0.12, floor=-0.30, rim=0.36, floor_warmth=0.45, rim_warmth=-0.10),
        _crater(shading=0.20, floor=-0.25, rim=0.25, floor_warmth=0.00, rim_warmth=0.00),
        _crater(shading=0.10, floor=0.28, rim=-0.20, floor_warmth=0.42, rim_warmth=-0.20),
    ],
    density=0.4,
)

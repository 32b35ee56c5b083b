"""Binned Fourier features: the coordinates of the scale space, band-limited at every zoom (Wolski et al. 2024, section 4.2).

Shapes: B views, K features, P points of a layer's grid along one axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multiscale.networks.plan import BAND_LIMIT
from multiscale.view import AffineViews, sample_positions
from torch_utils.devices import float32_products, full_precision


def fourier_features(
    omega: torch.Tensor,
    phase: torch.Tensor,
    bins: torch.Tensor,
    zoom_log2: torch.Tensor,
    centre: torch.Tensor,
    *,
    size: int,
    rate: float,
    bin_offset: float = 3.0,
    blend_offset: float = -1.0,
    blend_width: float = 1.0,
    band_limit: float | None = BAND_LIMIT,
    shift_gain: float = 1.0,
) -> torch.Tensor:
    """Feature maps a_b(s) d_k(s) sin(2 pi (2^(o b) omega_k . (g c + v/Z) + p_k)) on the grid v of one layer.

    Args:
        omega: World frequencies in cycles per unit, [K, 2] as (x, y).
        phase: Phases p in cycles, [K].
        bins: Bin b of each feature, integers [K].
        zoom_log2: Zoom s in octaves, [B].
        centre: World coordinates c of the views' centres, [B, 2].
        size: Samples n along each axis of the layer's grid, its margin included.
        rate: Sampling rate r: samples that fall inside the view.
        bin_offset: Octaves o between bins.
        blend_offset: Octaves after its own offset at which a bin begins to fade in.
        blend_width: Octaves over which a bin fades in.
        band_limit: kappa; a feature fades out between r/kappa and the Nyquist limit r/2. None: no band limit.
        shift_gain: g, 1 but for imported weights.

    Returns:
        [B, K, size, size] of the dtype of ``omega`` (float32 for float64 input on MPS).
    """
    linear = torch.diag_embed(torch.exp2(-zoom_log2.double().cpu())[:, None].expand(-1, 2))
    [waves] = waves_of_views(
        omega,
        phase,
        bins,
        AffineViews(linear, centre, zoom_log2),
        [Grid(len(omega), size, size, rate, shift_gain)],
        bin_offset=bin_offset,
        blend_offset=blend_offset,
        blend_width=blend_width,
        band_limit=band_limit,
    )
    return waves.maps()


@dataclass(frozen=True)
class Grid:
    """The grid of one injection point."""

    waves: int
    """How many features there are on it."""
    columns: int
    rows: int
    rate: float
    """Sampling rate r: samples in a view's side."""
    shift_gain: float = 1.0
    """g, 1 but for imported weights."""
    unit: float = 1.0
    """Cycles per unit of the world that ``omega`` counts in."""


@dataclass(frozen=True)
class Waves:
    """K plane waves on a grid, as factors: feature k is sin(alpha_k(x) + beta_k(y)), a sum of two outer products.

    Linear in x and y whatever the view's rotation, so this holds for every affine view. A feature may be a sum of R such
    ``terms``.
    """

    sin_x: torch.Tensor
    """sin alpha times the amplitude, [B, K R, columns], a feature's terms side by side; ``cos_x`` alike."""
    cos_x: torch.Tensor
    sin_y: torch.Tensor
    """sin beta, [B, K R, rows]; ``cos_y`` alike."""
    cos_y: torch.Tensor
    terms: int = 1
    """R."""
    shape: tuple[int, int] | None = None
    """Rows and columns of maps that do not factor: along x are all their samples, along y is one."""

    def styled(self, amplitude: torch.Tensor) -> Waves:
        """Each wave as A sin + B cos in place of sin, with ``amplitude`` [B, K, 2] = (A, B): another amplitude and phase."""
        a, b = _of_terms(amplitude.to(self.sin_y.dtype), self.terms)[..., None].unbind(2)  # [B, K R, 1]
        along_y = a * self.sin_y + b * self.cos_y, a * self.cos_y - b * self.sin_y
        return Waves(self.sin_x, self.cos_x, *along_y, self.terms, self.shape)

    def of(self, features: torch.Tensor) -> Waves:
        """Some of the features, by their places [K']."""
        terms = torch.arange(self.terms, device=features.device)
        rows = (features[:, None] * self.terms + terms).flatten()
        sin_x, cos_x, sin_y, cos_y = (part[:, rows] for part in (self.sin_x, self.cos_x, self.sin_y, self.cos_y))
        return Waves(sin_x, cos_x, sin_y, cos_y, self.terms, self.shape)

    def maps(self) -> torch.Tensor:
        """All features as maps [B, K, rows, columns]."""
        along_y = self._side_by_side(self.cos_y, self.sin_y).transpose(1, 2)  # [B K, rows, 2 R]
        along_x = self._side_by_side(self.sin_x, self.cos_x)  # [B K, 2 R, columns]
        with full_precision(along_x.device), float32_products():
            maps = torch.bmm(along_y, along_x)
        return self._shaped(maps.unflatten(0, (len(self.sin_x), -1)))

    def mixed(self, weight: torch.Tensor) -> torch.Tensor:
        """Maps [B, C, rows, columns] of the waves' mixtures by ``weight`` [C, K], in whichever order takes less memory."""
        channels = len(weight)
        rows, columns = self.sin_y.shape[-1], self.sin_x.shape[-1]
        if 2 * self.terms * channels > columns:  # K maps are smaller than the C K factors along y
            maps = self.maps()
            with full_precision(maps.device):
                mixed = torch.bmm(
                    weight.expand(len(maps), -1, -1), maps.flatten(2)
                )  # with @ all maps would be transposed
            return mixed.view(-1, channels, *(self.shape or (rows, columns)))
        along_y = torch.cat([self.cos_y, self.sin_y], dim=1).transpose(1, 2)[:, None]  # [B, 1, rows, 2 K R]
        along_y = along_y * _of_terms(weight, self.terms).repeat(1, 2)[:, None]  # [B, C, rows, 2 K R]
        along_x = torch.cat([self.sin_x, self.cos_x], dim=1)  # [B, 2 K R, columns]
        with full_precision(along_x.device):
            return self._shaped(torch.bmm(along_y.flatten(1, 2), along_x).view(-1, channels, rows, columns))

    def of_terms(
        self, sin_x: torch.Tensor, cos_x: torch.Tensor, sin_y: torch.Tensor, cos_y: torch.Tensor, *, factored: bool
    ) -> Waves:
        """Each wave times a sum of R others, which ``factored`` along x and y are [B, K, R, samples] each.

        Otherwise all are [B, K, R, P] of all samples, and so are those of the result along x.
        """
        if factored:
            terms = sin_x.shape[2]
            sin_x, cos_x = _product(self.sin_x[:, :, None], self.cos_x[:, :, None], sin_x, cos_x)
            sin_y, cos_y = _product(self.sin_y[:, :, None], self.cos_y[:, :, None], sin_y, cos_y)
            return Waves(sin_x.flatten(1, 2), cos_x.flatten(1, 2), sin_y.flatten(1, 2), cos_y.flatten(1, 2), terms)
        sine, cosine = (part.sum(dim=2) for part in _product(sin_x, cos_x, sin_y, cos_y))
        quarter_on = Waves(self.cos_x, -self.sin_x, self.sin_y, self.cos_y)
        sine, cosine = _product(self.maps().flatten(2), quarter_on.maps().flatten(2), sine, cosine)
        zero, one = torch.zeros_like(sine[..., :1]), torch.ones_like(sine[..., :1])
        return Waves(sine, cosine, zero, one, shape=(self.sin_y.shape[-1], self.sin_x.shape[-1]))

    def _side_by_side(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Two factors of each term, [B, K R, P] each, as [B K, 2 R, P] by feature."""
        return torch.stack([first, second], dim=2).unflatten(1, (-1, self.terms)).flatten(2, 3).flatten(0, 1)

    def _shaped(self, maps: torch.Tensor) -> torch.Tensor:
        return maps if self.shape is None else maps.flatten(2).unflatten(2, self.shape)


def _of_terms(numbers: torch.Tensor, terms: int) -> torch.Tensor:
    """Numbers of features, [N, K, ...], as those of their terms, [N, K R, ...]."""
    return numbers if terms == 1 else numbers.repeat_interleave(terms, dim=1)


def _product(
    sin_a: torch.Tensor, cos_a: torch.Tensor, sin_b: torch.Tensor, cos_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine and cosine of a + b."""
    return sin_a * cos_b + cos_a * sin_b, cos_a * cos_b - sin_a * sin_b


def waves_of_views(
    omega: torch.Tensor,
    phase: torch.Tensor,
    bins: torch.Tensor,
    views: AffineViews,
    grids: Sequence[Grid],
    *,
    bin_offset: float,
    blend_offset: float,
    blend_width: float,
    band_limit: float | None,
    limited: torch.Tensor | None = None,
) -> list[Waves]:
    """The factors of :func:`fourier_features`, for views with any linear part, on several grids at once.

    Each grid has some of the K features, in their order. On a GPU all take about as many launches as one. ``limited``: features
    that the band limit is for, bool [K]; None: all.
    """
    device, dtype = omega.device, omega.dtype
    precise = precise_device(device)
    linear, s, c = (t.to(device=precise, dtype=torch.float64) for t in (views.linear, views.zoom_log2, views.centre))

    bin_octaves = bin_offset * bins.to(device=precise, dtype=torch.float64)  # o b, in octaves [K]
    world = omega.to(device=precise, dtype=torch.float64) * torch.exp2(bin_octaves)[:, None]  # 2^(o b) omega [K, 2]
    if any(grid.unit != 1 for grid in grids):
        world = world * of_each_wave(grids, "unit", precise)[:, None]
    view = torch.einsum("ki,bij->bkj", world, linear)  # cycles per view [B, K, 2]

    # The phase at the centre reaches thousands of cycles at 256x, where float32 is off by 1e-3: reduce it in float64.
    if any(grid.shift_gain != 1 for grid in grids):
        world = world * of_each_wave(grids, "shift_gain", precise)[:, None]
    at_centre = torch.einsum("ki,bi->bk", world, c) + phase.to(device=precise, dtype=torch.float64)
    amplitude = bin_blend(bin_octaves, s, bins.to(precise), blend_offset, blend_width)
    if band_limit is not None:
        rate = of_each_wave(grids, "rate", precise)
        gain = band_limit_gain(view.norm(dim=-1), rate, band_limit)
        amplitude = amplitude * (gain if limited is None else torch.where(limited.to(precise), gain, 1))

    sin_x, cos_x, sin_y, cos_y = (t.to(device, dtype) for t in _sines(grids, view, at_centre, amplitude))
    columns, rows = [(grid.waves, grid.columns) for grid in grids], [(grid.waves, grid.rows) for grid in grids]
    factors = (_apart(sin_x, columns), _apart(cos_x, columns), _apart(sin_y, rows), _apart(cos_y, rows))
    return [Waves(*of_grid) for of_grid in zip(*factors, strict=True)]


def of_each_wave(grids: Sequence[Grid], name: str, device: torch.device) -> torch.Tensor:
    """A number of each grid as one of each of its features, float64 [K]; made on the device, as graphs hold no copies to it."""
    each = [torch.full([g.waves], getattr(g, name), dtype=torch.float64, device=device) for g in grids]
    return torch.cat(each)


def _sines(
    grids: Sequence[Grid], view: torch.Tensor, at_centre: torch.Tensor, amplitude: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Sines and cosines along x, times the amplitudes, and along y: [B, N], the numbers of one grid behind those of another.

    Args:
        grids: With K features in all.
        view: Cycles per view, float64 [B, K, 2].
        at_centre: Phase at the view's centre in cycles, [B, K].
        amplitude: [B, K].
    """
    along_x, along_y, gain_x = [], [], []
    counts = [grid.waves for grid in grids]
    parts = (t.split(counts, dim=1) for t in (view, at_centre[..., None], amplitude[..., None]))
    for grid, (cycles, centre, gain) in zip(grids, zip(*parts, strict=True), strict=True):
        x = y = sample_positions(grid.columns, grid.rate, view.device)
        if grid.rows != grid.columns:
            y = sample_positions(grid.rows, grid.rate, view.device)
        along_x.append((centre + cycles[..., 0, None] * x).flatten(1))
        along_y.append((cycles[..., 1, None] * y).flatten(1))
        gain_x.append(gain.expand(-1, -1, grid.columns).flatten(1))
    angle = 2 * math.pi * torch.cat(along_x + along_y, dim=1).remainder(1.0)
    gains = torch.cat(gain_x, dim=1)
    sizes = [gains.shape[1], angle.shape[1] - gains.shape[1]]
    (sin_x, sin_y), (cos_x, cos_y) = (t.split(sizes, dim=1) for t in (angle.sin(), angle.cos()))
    return gains * sin_x, gains * cos_x, sin_y, cos_y


def _apart(numbers: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """[B, N] as [B, K, P] of each grid."""
    parts = numbers.split(list(map(math.prod, shapes)), dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def bin_blend(
    bin_octaves: torch.Tensor, zoom_log2: torch.Tensor, bins: torch.Tensor, blend_offset: float, blend_width: float
) -> torch.Tensor:
    """a_b(s) = clamp((s - o b - blend_offset)/blend_width, 0, 1), and 1 for bin 0: [K], [B] -> [B, K]."""
    blend = ((zoom_log2[:, None] - bin_octaves - blend_offset) / blend_width).clamp(0, 1)
    return torch.where(bins == 0, torch.ones_like(blend), blend)


def band_limit_gain(frequency: torch.Tensor, rate: float | torch.Tensor, band_limit: float) -> torch.Tensor:
    """d_k(s) = clamp(1 - (|f| - r/kappa)/(r/2 - r/kappa), 0, 1): 1 up to r/kappa, 0 from the Nyquist limit on."""
    passed = rate / band_limit
    return (1 - (frequency - passed) / (rate / 2 - passed)).clamp(0, 1)


def draw_features(
    radii: torch.Tensor, size: int, rate: int, n_bins: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw the features of one injection point: uniform directions and phases, dealt to the bins in turn.

    Args:
        radii: rho, cycles across the padded grid, float64 [K].
        size: Padded size n of the point's grid.
        rate: Its sampling rate r.
        n_bins: Number of bins.
        rng: Source of directions and phases.

    Returns:
        omega float32 [K, 2] with |omega| = rho r/n, phase float32 [K] in [-1/2, 1/2], bins int64 [K].
    """
    count = len(radii)
    direction = torch.as_tensor(rng.uniform(0, 2 * np.pi, size=count))
    phase = torch.as_tensor(rng.uniform(-0.5, 0.5, size=count))
    omega = (radii * rate / size)[:, None] * torch.stack([direction.cos(), direction.sin()], dim=1)
    return omega.float(), phase.float(), torch.arange(count) % n_bins


def precise_device(device: torch.device) -> torch.device:
    """Where float64 works: the device itself, but the CPU in place of MPS."""
    return torch.device("cpu") if device.type == "mps" else device

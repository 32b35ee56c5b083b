"""Wave packets: features that do not repeat themselves.

A network has some tens of features in each octave of frequencies, and a view of 64 pixels can tell some 1,200 waves of 16 to 32
cycles apart: a sum of so few single waves is a weave. A packet puts many waves in the place of one, about its frequency omega:

    e^(2 pi i (omega . x + p)) X(x) Y(y),  X(x) = M^(-1/2) sum_m e^(2 pi i (delta |omega| u_m x + q_m)),  Y alike,

u_m in [-1, 1]: M^2 waves, whose parts along x and y still factor, so that a packet is mixed at the price of a single wave. It
has no weights of its own, and is a function of the world point alone, as a wave is.

Shapes: B views, K features, M waves of a packet along an axis, P samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from multiscale.networks.fourier import Grid, Waves, precise_device
from multiscale.view import AffineViews, sample_positions

import os
SOFT = float(os.environ.get("SOFT", "0.1"))
LINES = 6
"""M."""


def draw_packets(count: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets u in [-1, 1], one in each M-th of it, and phases q in cycles, of ``count`` packets: [K, 2 (x, y), M] each.

    They follow from their places by a hash (MurmurHash3's finaliser) and are never stored: the same on every machine, in every
    version and in a page's JavaScript. Each injection point has a ``stream`` of its own.
    """
    shape = (2, count, 2, LINES)
    x: Any = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(0x9E3779B9 * (stream + 1) % 2**32)
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    jitter, phase = (((x ^ x >> 16) + 0.5) / 2**32).reshape(shape)
    return (np.arange(LINES) + jitter) * (2 / LINES) - 1, phase


def reach_of(bandwidth: float) -> float:
    """Frequency of a packet's highest wave over the packet's own."""
    return 1 + math.sqrt(2) * bandwidth


def widened(
    waves: Sequence[Waves],
    grids: Sequence[Grid],
    frequency: torch.Tensor,
    omega: torch.Tensor,
    views: AffineViews,
    offset: torch.Tensor,
    phase: torch.Tensor,
    *,
    bandwidth: float,
    anchor: float,
) -> list[Waves]:
    """Packets in place of single waves.

    Args:
        waves: Factors of the single waves on each grid.
        grids: With K features in all.
        frequency: |omega| in cycles over the world, [K].
        views: Those of ``waves``.
        offset: u, [K, 2, M].
        phase: q in cycles, [K, 2, M].
        bandwidth: delta.
        anchor: Features of fewer cycles over the world stay single waves.

    Returns:
        Factors; of ``views.turned`` all samples along x, as the sums do not factor along the sides of such views.
    """
    precise = precise_device(frequency.device)
    omega = omega.to(device=precise, dtype=torch.float64)
    rate = torch.cat([torch.full([g.waves], g.rate, dtype=torch.float64, device=precise) for g in grids])
    frequency, offset, phase, linear, centre = (
        t.to(device=precise, dtype=torch.float64) for t in (frequency, offset, phase, views.linear, views.centre)
    )
    frequency = frequency[:, None, None]
    single = frequency < anchor  # [K, 1, 1]
    step = (bandwidth * frequency * offset).masked_fill(single, 0)  # cycles a unit, [K, 2, M]
    start = step * centre[:, None, :, None] + phase.masked_fill(single, 0)  # cycles, [B, K, 2, M]
    gain = torch.where(single, 1 / LINES, LINES**-0.5)[..., 0]  # [K, 1]
    spread = bandwidth * frequency[..., 0]
    corner = omega.abs() + spread  # [K, 2]
    zoomed = torch.exp2(-views.zoom_log2.to(precise).double())[:, None] * corner.norm(dim=1)
    part = rate / 2 / zoomed  # t [B, K]
    own = (omega[..., None] + bandwidth * frequency * offset).abs() / corner[..., None]  # [K, 2, M]
    kept = ((part[..., None, None] - own) / SOFT).clamp(0, 1).masked_fill(single, 1)  # [B, K, 2, M]

    counts = [grid.waves for grid in grids]
    parts = zip(step.split(counts), start.split(counts, dim=1), gain.split(counts), kept.split(counts, dim=1), strict=True)
    wide = []
    for grid, of_point, (of_step, of_start, of_gain, of_kept) in zip(grids, waves, parts, strict=True):
        x, y = (sample_positions(size, grid.rate, precise) for size in (grid.columns, grid.rows))
        if views.turned:
            points = linear @ torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1)  # units, [B, 2, P]
            along: Sequence[torch.Tensor] = points.unbind(1)
        else:
            along = linear[:, 0, :1] * x, linear[:, 1, 1:] * y  # [B, P] each
        (sin_x, cos_x), (sin_y, cos_y) = (
            [(of_gain * part).to(of_point.sin_x) for part in _sums(of_start[:, :, axis], of_step[:, axis], of_kept[:, :, axis], offsets)]
            for axis, offsets in enumerate(along)
        )
        if views.turned:
            wide.append(of_point.unfactored().times(sin_x, cos_x).times(sin_y, cos_y))
        else:
            wide.append(of_point.times(sin_x, cos_x, sin_y, cos_y))
    return wide


def _sums(start: torch.Tensor, step: torch.Tensor, kept: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sines and cosines of waves summed over a packet, float32 [B, K, P] each.

    Args:
        start: Phases at the views' centres in cycles, float64 [B, K, M].
        step: Frequencies in cycles a unit of the world, float64 [K, M].
        offsets: Of samples from the centre in units of the world, float64 [B, P].
    """
    # Within a view a phase moves by few cycles, for which float32 is enough.
    angle = start.remainder(1.0).float()[..., None] + step.float()[..., None] * offsets.float()[:, None, None]
    angle = 2 * math.pi * angle
    kept = kept.float()[..., None]
    return (kept * angle.sin()).sum(dim=2), (kept * angle.cos()).sum(dim=2)

"""Wave packets: features that do not repeat themselves.

A network has some tens of features in each octave of frequencies, and a view of 64 pixels can tell some 1,200 waves of 16 to 32
cycles apart: a sum of so few single waves is a weave. A packet puts many waves in the place of one, about its frequency omega:

    e^(2 pi i (omega . x + p)) X(x) Y(y),  X(x) = M^(-1/2) sum_m e^(2 pi i (delta |omega| u_m x + q_m)),  Y alike,

u_m in [-1, 1]: M^2 waves, whose parts along x and y still factor, so that a packet is mixed at the price of a single wave. It
has no weights of its own, and is a function of the world point alone, as a wave is.

A packet ends at the Nyquist limit wave by wave, as what ends as a whole would leave little in the last half octave below it.
Its waves lie in a box, |f_x| <= c_x and |f_y| <= c_y with c = (|omega_x|, |omega_y|) + delta |omega|. On a grid of rate r the
box shrunk by t = (r/2)/|c in the view|, whose corner is at the limit, holds the waves that are left. In its outer tenth they
fade.

Shapes: B views, K features, M waves of a packet along an axis, P samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from multiscale.networks.fourier import Grid, Waves, of_each_wave, precise_device
from multiscale.view import AffineViews, sample_positions

LINES = 6
"""M."""

FADE = 0.1
"""Part of a packet's box over which its waves fade out."""


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


def widened(
    waves: Sequence[Waves],
    grids: Sequence[Grid],
    omega: torch.Tensor,
    views: AffineViews,
    offset: torch.Tensor,
    phase: torch.Tensor,
    *,
    bandwidth: float,
    single: torch.Tensor,
) -> list[Waves]:
    """Packets in place of single waves.

    Args:
        waves: Factors of the single waves on each grid.
        grids: With K features in all.
        omega: In cycles over the world, [K, 2 (x, y)].
        views: Those of ``waves``.
        offset: u, [K, 2, M].
        phase: q in cycles, [K, 2, M].
        bandwidth: delta.
        single: Features that stay single waves, bool [K].

    Returns:
        Factors; of ``views.turned`` all samples along x, as the sums do not factor along the sides of such views.
    """
    precise = precise_device(omega.device)
    omega, offset, phase, linear, centre = (
        t.to(device=precise, dtype=torch.float64) for t in (omega, offset, phase, views.linear, views.centre)
    )
    single = single.to(precise)[:, None, None]  # [K, 1, 1]
    spread = bandwidth * omega.norm(dim=1, keepdim=True)  # [K, 1]
    step = spread[..., None] * offset  # cycles a unit, [K, 2, M]
    kept = _kept(omega, step, spread, linear, grids).masked_fill(single, 1)  # [B, K, 2, M]
    step = step.masked_fill(single, 0)
    start = step * centre[:, None, :, None] + phase.masked_fill(single, 0)  # cycles, [B, K, 2, M]
    gain = (kept * torch.where(single, 1 / LINES, LINES**-0.5)).float()

    counts = [grid.waves for grid in grids]
    parts = zip(step.split(counts), start.split(counts, dim=1), gain.split(counts, dim=1), strict=True)
    wide = []
    for grid, of_point, (of_step, of_start, of_gain) in zip(grids, waves, parts, strict=True):
        x, y = (sample_positions(size, grid.rate, precise) for size in (grid.columns, grid.rows))
        if views.turned:
            points = linear @ torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1)  # units, [B, 2, P]
            along: Sequence[torch.Tensor] = points.unbind(1)
        else:
            along = linear[:, 0, :1] * x, linear[:, 1, 1:] * y  # [B, P] each
        (sin_x, cos_x), (sin_y, cos_y) = (
            [
                part.to(of_point.sin_x)
                for part in _sums(of_start[:, :, axis], of_step[:, axis], of_gain[:, :, axis], offsets)
            ]
            for axis, offsets in enumerate(along)
        )
        if views.turned:
            wide.append(of_point.unfactored().times(sin_x, cos_x).times(sin_y, cos_y))
        else:
            wide.append(of_point.times(sin_x, cos_x, sin_y, cos_y))
    return wide


def _kept(
    omega: torch.Tensor, step: torch.Tensor, spread: torch.Tensor, linear: torch.Tensor, grids: Sequence[Grid]
) -> torch.Tensor:
    """What the band limits of grids leave of the waves along each axis of packets, 0 to 1: [B, K, 2, M].

    Args:
        omega: [K, 2].
        step: Of waves from omega in cycles a unit of the world, [K, 2, M].
        spread: Of the outermost of them, delta |omega|, [K, 1].
        linear: World from view, [B, 2, 2].
        grids: With K features in all.
    """
    corner = omega.abs() + spread  # c
    (cx, cy), (x, y) = corner.unbind(1), linear.unbind(1)  # [K]; what an axis of the world is in the view, [B, 2]
    # |cx x + cy y| and |cx x - cy y| are the box's corners, of which one is farther out in a sheared view.
    sheared = 2 * cx * cy * (x * y).sum(dim=1, keepdim=True).abs()
    square = cx.square() * x.square().sum(dim=1, keepdim=True) + cy.square() * y.square().sum(dim=1, keepdim=True)
    reach = (square + sheared).sqrt()  # cycles a view, [B, K]
    shrunk = (of_each_wave(grids, "rate", omega.device) / 2 / reach)[..., None, None]  # t
    place = (omega[..., None] + step).abs() / corner[..., None]  # in the box, 0 to 1
    return ((shrunk - place) / FADE).clamp(0, 1)


def _sums(
    start: torch.Tensor, step: torch.Tensor, gain: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sines and cosines of waves summed over a packet, float32 [B, K, P] each.

    Args:
        start: Phases at the views' centres in cycles, float64 [B, K, M].
        step: Frequencies in cycles a unit of the world, float64 [K, M].
        gain: Amplitudes, float32 [B, K, M].
        offsets: Of samples from the centre in units of the world, float64 [B, P].
    """
    # Within a view a phase moves by few cycles, for which float32 is enough.
    angle = start.remainder(1.0).float()[..., None] + step.float()[..., None] * offsets.float()[:, None, None]
    angle, gain = 2 * math.pi * angle, gain[..., None]
    return (gain * angle.sin()).sum(dim=2), (gain * angle.cos()).sum(dim=2)

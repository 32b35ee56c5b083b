"""Wave packets: features that do not repeat themselves.

A network has some tens of features in each octave of frequencies, and a view of 64 pixels can tell some 1,200 waves of 16 to 32
cycles apart: a sum of so few single waves is a weave. A packet puts a few bent waves in the place of one of frequency omega:

    R^(-1/2) sum_r e^(2 pi i ((omega + d_r) . x + p + X_r(x) + Y_r(y))),
    X(x) = q + a/(2 pi nu) sin(2 pi (nu x + q')), Y alike, a = delta |omega|/2,

with a shift |d| <= a along each axis. The frequency of a bent wave at a place, its local frequency, strays from omega by
delta |omega| at most along each axis: crests turn and crowd as they go, and together the waves are strong here and weak there.
Each still factors along x and y. (So does a product of sums of waves, one along each axis, but it is strong and weak in
rectangles, which show.) A packet has no weights of its own, and is a function of the world point alone, as a wave is.

A packet ends at the Nyquist limit place by place, as what ends as a whole would leave little in the last half octave below it.
Its local frequencies lie in a box, |f_x| <= c_x and |f_y| <= c_y with c = (|omega_x|, |omega_y|) + delta |omega|. On a grid of
rate r the box shrunk by t = (r/2)/|c in the view|, whose corner is at the limit, holds those that are left; in its outer tenth
they fade. The bends are slow, so that what this leaves above the limit is some 1e-4 of a packet's power.

Shapes: B views, K features, R bent waves of a packet, P samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from multiscale.networks.fourier import Grid, Waves, of_each_wave, precise_device
from multiscale.view import AffineViews, sample_positions

BENT_WAVES = 3
"""R."""

SLOWEST, FASTEST = 0.05, 0.2
"""Between these are the bends' frequencies nu, in delta |omega|."""

FADE = 0.1
"""Part of a packet's box over which its local frequencies fade out."""


def draw_packets(count: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers from 0 to 1 of ``count`` packets: where d and nu lie between their limits, and the phases q and q' in cycles.

    Both are [K, 2 (x, y), R, 2 (of the shift, of the bend)].

    They follow from their places in the arrays by a hash (MurmurHash3's finaliser) and are never stored: the same on every
    machine, in every version and in a page's JavaScript. Each injection point has a ``stream`` of its own.
    """
    shape = (2, count, 2, BENT_WAVES, 2)
    x: Any = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(0x9E3779B9 * (stream + 1) % 2**32)
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    place, phase = (((x ^ x >> 16) + 0.5) / 2**32).reshape(shape)
    return place, phase


def bent(
    waves: Sequence[Waves],
    grids: Sequence[Grid],
    omega: torch.Tensor,
    views: AffineViews,
    place: torch.Tensor,
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
        place: Of :func:`draw_packets`, [K, 2, R, 2].
        phase: Likewise.
        bandwidth: delta.
        single: Features that stay single waves, bool [K].

    Returns:
        Factors, R for each feature; of ``views.turned`` one, with all samples along x, as bends do not factor along the sides
        of such views.
    """
    precise = precise_device(omega.device)
    omega, place, phase, linear, centre = (
        t.to(device=precise, dtype=torch.float64) for t in (omega, place, phase, views.linear, views.centre)
    )
    single = single.to(precise)
    spread = bandwidth * omega.norm(dim=1)  # cycles a unit, [K]
    most = (spread / 2).masked_fill(single, 0)[:, None, None]  # a, [K, 1, 1]
    shift, bend = place.unbind(-1)
    shift = most * (2 * shift - 1)  # d, [K, 2, R]
    bend = spread[:, None, None] * (SLOWEST + (FASTEST - SLOWEST) * bend)  # nu, [K, 2, R]
    # Phases at the views' centres reach thousands of cycles at 256x: they are reduced in float64.
    of_shift, of_bend = (
        (frequency * centre[:, None, :, None] + at_0.masked_fill(single[:, None, None], 0)).remainder(1.0)
        for frequency, at_0 in zip((shift, bend), phase.unbind(-1), strict=True)
    )  # cycles, [B, K, 2, R]
    shrunk, corner = _boxes(omega, spread, linear, grids)
    shrunk = shrunk.masked_fill(single, math.inf)  # single waves have a limit of their own
    gain = torch.where(single, 1 / BENT_WAVES, BENT_WAVES**-0.5)

    parts = zip(
        *(t.split([grid.waves for grid in grids]) for t in (omega, most, shift, bend, corner, gain)),
        *(t.split([grid.waves for grid in grids], dim=1) for t in (of_shift, of_bend, shrunk)),
        strict=True,
    )
    packets = []
    for grid, of_point, (w, a, d, nu, c, g, q, q_bend, t) in zip(grids, waves, parts, strict=True):
        x, y = (sample_positions(size, grid.rate, precise) for size in (grid.columns, grid.rows))
        if views.turned:
            points = linear @ torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1)  # units, [B, 2, P]
            along: Sequence[torch.Tensor] = points.unbind(1)
        else:
            along = linear[:, 0, :1] * x, linear[:, 1, 1:] * y  # [B, P] each
        factors: list[torch.Tensor] = []
        for axis, offsets in enumerate(along):
            sine, cosine = _bent(
                w[:, axis, None], d[:, axis], nu[:, axis], a[:, 0], q[:, :, axis], q_bend[:, :, axis], offsets,
                end=t[..., None] * c[:, axis, None], fade=FADE * c[:, axis, None],
            )  # fmt: skip
            factors += [(part * (g[:, None, None] if axis == 0 else 1)).to(of_point.sin_x) for part in (sine, cosine)]
        packets.append(of_point.of_terms(*factors, factored=not views.turned))
    return packets


def _boxes(
    omega: torch.Tensor, spread: torch.Tensor, linear: torch.Tensor, grids: Sequence[Grid]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What grids leave of packets' boxes, t [B, K], and the boxes' corners c in cycles a unit of the world, [K, 2].

    Args:
        omega: [K, 2].
        spread: delta |omega|, [K].
        linear: World from view, [B, 2, 2].
        grids: With K features in all.
    """
    corner = omega.abs() + spread[:, None]
    (cx, cy), (x, y) = corner.unbind(1), linear.unbind(1)  # [K]; what an axis of the world is in the view, [B, 2]
    # |cx x + cy y| and |cx x - cy y| are the box's corners, of which one is farther out in a sheared view.
    sheared = 2 * cx * cy * (x * y).sum(dim=1, keepdim=True).abs()
    square = cx.square() * x.square().sum(dim=1, keepdim=True) + cy.square() * y.square().sum(dim=1, keepdim=True)
    reach = (square + sheared).sqrt()  # cycles a view, [B, K]
    return of_each_wave(grids, "rate", omega.device) / 2 / reach, corner


def _bent(
    omega: torch.Tensor,
    shift: torch.Tensor,
    bend: torch.Tensor,
    most: torch.Tensor,
    of_shift: torch.Tensor,
    of_bend: torch.Tensor,
    offsets: torch.Tensor,
    *,
    end: torch.Tensor,
    fade: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sines and cosines of d x + X(x) along an axis, times what the band limit leaves, float32 [B, K, R, P] each.

    Frequencies are in cycles a unit of the world, phases in cycles.

    Args:
        omega: Along the axis, float64 [K, 1].
        shift: d, [K, R].
        bend: nu, [K, R].
        most: a, [K, 1].
        of_shift: Phase of the shift at the views' centres, q included, [B, K, R].
        of_bend: That of the bend.
        offsets: Of samples from the centre in units of the world, [B, P].
        end: Local frequency at which nothing is left, [B, K, 1].
        fade: How far below it fading begins, [K, 1].
    """
    # Within a view a phase moves by few cycles, for which float32 is enough.
    x = offsets.float()[:, None, None]  # [B, 1, 1, P]
    mean, shift, bend, most, depth, of_shift, of_bend, end, fade = (
        t.float()[..., None]
        for t in (omega + shift, shift, bend, most, most / (2 * math.pi * bend), of_shift, of_bend, end, fade)
    )
    turn = 2 * math.pi * (of_bend + bend * x)
    angle = 2 * math.pi * (of_shift + shift * x + depth * turn.sin())
    kept = ((end - (mean + most * turn.cos()).abs()) / fade).clamp(0, 1)
    return kept * angle.sin(), kept * angle.cos()

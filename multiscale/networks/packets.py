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
from typing import Any

import numpy as np
import torch

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


def envelope(start: torch.Tensor, step: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of waves along an axis, each of amplitude 1.

    Args:
        start: Phases at the views' centres in cycles, float64 [B, K, M].
        step: Frequencies in cycles per unit of the world, float64 [K, M].
        offsets: Of samples from the centre in units of the world, float64 [B, P].

    Returns:
        Sines and cosines summed over M, float32 [B, K, P] each.
    """
    # What is left of the phase is some cycles, for which float32 is enough.
    angle = start.remainder(1.0).float()[..., None] + step.float()[..., None] * offsets.float()[:, None, None]
    angle = 2 * math.pi * angle
    return angle.sin().sum(dim=2), angle.cos().sum(dim=2)

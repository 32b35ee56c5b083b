"""Power spectra of patches, averaged over directions: what detail a model lacks, and what it makes up.

A patch is freed of its mean, multiplied by a Hann window in both directions (its borders do not meet), and transformed.
Power is averaged over the channels and over all frequencies of nearly one length.

Shapes: B patches, C channels, N side in pixels, K = N/2 + 1 radii (0 ... N/2 cycles across the patch).
"""

from __future__ import annotations

import numpy as np
import torch

FLOOR = 1e-12
"""Least power that a ratio is taken of, for images in [-1, 1]."""


def radial_power(images: torch.Tensor) -> torch.Tensor:
    """Power by frequency of each patch.

    Args:
        images: uint8 [B, C, N, N], or floating point in [-1, 1].

    Returns:
        float64 [B, K]: mean over the channels and over the frequencies (u, v) with round(|(u, v)|) = k, of
        |FFT(window (x - mean))|^2 / sum(window^2). The constant, k = 0, is what the window leaves of the mean.
    """
    x = images.double() / 127.5 - 1 if images.dtype == torch.uint8 else images.double()
    size = x.shape[-1]
    window = 0.5 - 0.5 * torch.cos(2 * torch.pi * (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / size)
    window = window[:, None] * window
    x = (x - x.mean(dim=(2, 3), keepdim=True)) * window
    power = torch.fft.fft2(x).abs().square().mean(dim=1) / window.square().sum()  # [B, N, N]
    frequency = torch.fft.fftfreq(size, 1 / size, device=x.device, dtype=x.dtype)
    radius = (frequency[:, None].square() + frequency.square()).sqrt().round().long().flatten()
    kept = radius <= size // 2
    sums = torch.zeros(len(x), size // 2 + 1, device=x.device, dtype=x.dtype)
    sums.index_add_(1, radius[kept], power.flatten(1)[:, kept])
    return sums / torch.bincount(radius[kept], minlength=size // 2 + 1)


def spectrum_difference(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """Power of generated over real patches in dB for k = 1 ... N/2: [..., K] and [..., K] -> [..., K - 1].

    Below 0 detail is missing, above 0 there is too much.
    """
    return 10 * np.log10(np.maximum(fake[..., 1:], FLOOR) / np.maximum(real[..., 1:], FLOOR))


def spectrum_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Mean |difference| of two mean spectra [K], in dB, over all frequencies but the constant."""
    return float(np.abs(spectrum_difference(real, fake)).mean())

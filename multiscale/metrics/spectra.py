"""Power spectra of patches, averaged over directions: which detail a model lacks, and which it makes up.

A patch is centred on its mean, multiplied by a Hann window in both directions (its borders do not match), and transformed.
Power is averaged over the channels and over all frequencies of nearly one length.

Shapes: B patches, C channels, N side in pixels, K = N/2 + 1 radii (0 ... N/2 cycles across the patch).
"""

from __future__ import annotations

import numpy as np
import torch

FLOOR = 1e-12
"""Least power in a ratio, for images in [-1, 1]."""
LATTICE_FROM = 3
"""Lowest frequency of a pattern in cycles across a patch; below it the scene itself has few frequencies."""
LATTICE_PART = 0.01
"""Fraction of the frequencies that count as peaks."""


def radial_power(images: torch.Tensor) -> torch.Tensor:
    """Power by frequency of each patch.

    Args:
        images: uint8 [B, C, N, N], or floating point in [-1, 1].

    Returns:
        float64 [B, K]: mean over the channels and over the frequencies (u, v) with round(|(u, v)|) = k, of
        |FFT(window (x - mean))|^2 / sum(window^2). The constant, k = 0, is what the window leaves of the mean.
    """
    x = _in_unit_range(images)
    size = x.shape[-1]
    power = _power(x).mean(dim=1)  # [B, N, N]
    radius = _radius(size, x.device).round().long().flatten()
    kept = radius <= size // 2
    sums = torch.zeros(len(x), size // 2 + 1, device=x.device, dtype=x.dtype)
    sums.index_add_(1, radius[kept], power.flatten(1)[:, kept])
    return sums / torch.bincount(radius[kept], minlength=size // 2 + 1)


def plane_power(images: torch.Tensor) -> torch.Tensor:
    """Power of each grey patch, the mean of its channels, at every frequency: [B, C, N, N] -> float64 [B, N, N].

    Frequencies are in the order of ``torch.fft.fftfreq``; the rest is as :func:`radial_power` has it.
    """
    return _power(_in_unit_range(images).mean(dim=1, keepdim=True))[:, 0]


def relative_power(power: torch.Tensor) -> torch.Tensor:
    """A spectrum [N, N] divided by its mean over the frequencies of the same rounded length."""
    ring = _radius(power.shape[-1], power.device).round().long().flatten()
    sums = torch.bincount(ring, weights=power.flatten() + FLOOR)
    relative = (power.flatten() + FLOOR) / (sums / torch.bincount(ring).clamp(min=1))[ring]
    return relative.view_as(power)


def lattice_peak(power: torch.Tensor) -> float:
    """How far the highest peaks of a mean spectrum [N, N] stand out of frequencies of the same length.

    Of its :func:`relative_power`, at the frequencies from ``LATTICE_FROM`` to below
    N/2 cycles across the patch it is the mean of the highest ``LATTICE_PART`` (of one at least). A periodic pattern has few
    frequencies and so high peaks; so has the mean over few patches: compare equal numbers.

    Raises:
        ValueError: the patches are too small to have any such frequency.
    """
    length = _radius(power.shape[-1], power.device)
    found = relative_power(power)[(length >= LATTICE_FROM) & (length < power.shape[-1] / 2)]
    if not len(found):
        raise ValueError(f"Patches of {power.shape[-1]} pixels have no frequencies to look for a lattice in.")
    return float(found.topk(max(round(LATTICE_PART * len(found)), 1)).values.mean())


def _in_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Float64 in [-1, 1] of uint8; floating point stays."""
    return images.double() / 127.5 - 1 if images.dtype == torch.uint8 else images.double()


def _power(x: torch.Tensor) -> torch.Tensor:
    """|FFT(window (x - mean))|^2 / sum(window^2) of float64 [B, C, N, N], of the same shape."""
    size = x.shape[-1]
    window = 0.5 - 0.5 * torch.cos(2 * torch.pi * (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / size)
    window = window[:, None] * window
    x = (x - x.mean(dim=(2, 3), keepdim=True)) * window
    return torch.fft.fft2(x).abs().square() / window.square().sum()


def _radius(size: int, device: torch.device) -> torch.Tensor:
    """|(u, v)| of each frequency, float64 [N, N]."""
    frequency = torch.fft.fftfreq(size, 1 / size, device=device, dtype=torch.float64)
    return (frequency[:, None].square() + frequency.square()).sqrt()


def spectrum_difference(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """Power of generated over real patches in dB for k = 1 ... N/2: [..., K] and [..., K] -> [..., K - 1].

    Below 0 detail is missing, above 0 there is too much.
    """
    return 10 * np.log10(np.maximum(fake[..., 1:], FLOOR) / np.maximum(real[..., 1:], FLOOR))


def spectrum_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Mean |difference| of two mean spectra [K], in dB, over all frequencies but the constant."""
    return float(np.abs(spectrum_difference(real, fake)).mean())

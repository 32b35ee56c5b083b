"""Low-pass filters of the alias-free layers: Kaiser-windowed sinc (separable) or jinc (radial)."""

from __future__ import annotations

import numpy as np
import scipy.signal
import scipy.special
import torch


def design_lowpass_filter(
    numtaps: int, cutoff: float, width: float, fs: float, radial: bool = False
) -> torch.Tensor | None:
    """Design a Kaiser-windowed FIR low-pass filter with unit sum (Karras et al. 2021, "StyleGAN3", appendix C).

    Args:
        numtaps: Number of taps along each axis, >= 1.
        cutoff: Cutoff frequency f_c in the unit of ``fs`` (cycles per unit of length).
        width: Full width of the transition band, 2 f_h, in the unit of ``fs``.
        fs: Sampling rate.
        radial: A circularly symmetric 2-D filter, J1(2 pi f_c r)/(pi r) times the outer product of the Kaiser window,
            in place of a 1-D filter that is to be applied along both axes.

    Returns:
        Float32 [numtaps], or [numtaps, numtaps] if radial; None for one tap, which filters nothing.
    """
    if numtaps < 1:
        raise ValueError(f"numtaps={numtaps} is not allowed; a filter has 1 tap or more")
    if numtaps == 1:
        return None
    if not radial:
        taps = scipy.signal.firwin(numtaps=numtaps, cutoff=cutoff, width=width, fs=fs)
        return torch.as_tensor(taps, dtype=torch.float32)

    position = (np.arange(numtaps) - (numtaps - 1) / 2) / fs
    radius = np.hypot(position[:, None], position[None, :])
    jinc = np.full_like(radius, cutoff)  # the limit of J1(2 pi f_c r)/(pi r) at r = 0
    away = radius > 0
    jinc[away] = scipy.special.j1(2 * np.pi * cutoff * radius[away]) / (np.pi * radius[away])
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(numtaps, width / (fs / 2)))
    window = np.kaiser(numtaps, beta)
    taps = jinc * np.outer(window, window)
    return torch.as_tensor(taps / taps.sum(), dtype=torch.float32)

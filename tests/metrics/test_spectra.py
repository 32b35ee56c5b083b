"""Power spectra: against a plain numpy twin, and that they show what is missing and what is made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_sliced_wasserstein import smooth_images

from multiscale.metrics.spectra import radial_power, spectrum_difference, spectrum_distance


def numpy_power(image: np.ndarray) -> np.ndarray:
    """Radial mean of one image's power, frequency by frequency."""
    size = image.shape[-1]
    window = np.outer(*(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2,) * 2)
    sums, counts = np.zeros(size // 2 + 1), np.zeros(size // 2 + 1)
    spectrum = [np.fft.fft2((plane / 127.5 - 1 - np.mean(plane / 127.5 - 1)) * window) for plane in image]
    for u in range(size):
        for v in range(size):
            radius = round(np.hypot(min(u, size - u), min(v, size - v)))
            if radius <= size // 2:
                sums[radius] += np.mean([abs(plane[u, v]) ** 2 for plane in spectrum])
                counts[radius] += 1
    return sums / counts / np.sum(window**2)


@pytest.mark.parametrize("channels", [1, 3])
def test_radial_power_is_that_of_plain_loops(channels):
    images = smooth_images(2, 32, 0, channels)
    expected = np.stack([numpy_power(image.astype(np.float64)) for image in images])
    np.testing.assert_allclose(radial_power(torch.from_numpy(images)).numpy(), expected, rtol=1e-9)
    as_float = torch.from_numpy(images) / 127.5 - 1
    np.testing.assert_allclose(radial_power(as_float).numpy(), expected, rtol=1e-4)


def test_white_noise_has_the_same_power_at_every_frequency():
    noise = torch.randn(200, 1, 32, 32, dtype=torch.float64)
    power = radial_power(noise).mean(0).numpy()
    np.testing.assert_allclose(power[2:], 1, atol=0.1)


def test_a_wave_stands_at_its_frequency():
    x = torch.arange(64, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * 12 * x / 64).expand(1, 3, 64, 64)
    assert int(radial_power(wave)[0].argmax()) == 12


def test_missing_detail_is_below_0_dB_and_noise_above():
    images = smooth_images(20, 64, 1).astype(np.float64)
    blurred = ndimage.gaussian_filter(images, (0, 0, 1, 1))
    noisy = images + np.random.default_rng(2).normal(0, 20, images.shape)
    real, less, more = (radial_power(torch.from_numpy(x / 127.5 - 1)).mean(0).numpy() for x in (images, blurred, noisy))
    assert (spectrum_difference(real, less)[16:] < -3).all()
    assert (spectrum_difference(real, more)[24:] > 3).all()
    assert spectrum_distance(real, real) == 0
    expected = np.mean(np.abs(10 * np.log10(less[1:] / real[1:])))
    assert spectrum_distance(real, less) == pytest.approx(expected)

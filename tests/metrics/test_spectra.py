"""Power spectra: against a plain numpy twin, and that they show what is missing and what is made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_sliced_wasserstein import smooth_images

from multiscale.metrics.spectra import lattice_peak, plane_power, radial_power, spectrum_difference, spectrum_distance


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


def numpy_peak(power: np.ndarray) -> float:
    """The mean of the highest hundredth over the mean on each ring, frequency by frequency."""
    size = len(power)
    length = {(u, v): np.hypot(min(u, size - u), min(v, size - v)) for u in range(size) for v in range(size)}
    relative = []
    for place, radius in length.items():
        ring = [power[other] for other, r in length.items() if round(r) == round(radius)]
        if 3 <= radius < size / 2:
            relative.append(power[place] / np.mean(ring))
    return float(np.mean(sorted(relative)[-max(round(len(relative) / 100), 1) :]))


def test_the_peak_is_that_of_plain_loops():
    images = smooth_images(3, 32, 0, 3).astype(np.float64)
    window = np.outer(*(np.sin(np.pi * (np.arange(32) + 0.5) / 32) ** 2,) * 2)
    grey = (images / 127.5 - 1).mean(axis=1)
    spectra = [np.abs(np.fft.fft2((x - x.mean()) * window)) ** 2 / np.sum(window**2) for x in grey]
    found = plane_power(torch.from_numpy(images.astype(np.uint8)))
    np.testing.assert_allclose(found.numpy(), spectra, rtol=1e-8, atol=1e-12)
    assert lattice_peak(found.mean(dim=0)) == pytest.approx(numpy_peak(np.mean(spectra, axis=0)), rel=1e-6)


def test_white_noise_has_no_lattice_and_a_wave_in_it_is_one():
    def peak(images: torch.Tensor) -> float:
        return lattice_peak(plane_power(images).mean(dim=0))

    real, fake = torch.randn(2, 64, 3, 32, 32, dtype=torch.float64)
    x = torch.arange(32, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * (7 * x[:, None] + 4 * x) / 32)
    assert peak(fake) / peak(real) == pytest.approx(1, abs=0.1)
    assert peak(fake + 0.5 * wave) / peak(real) > 3
    assert peak(real[:4]) > 1.5 * peak(real)  # few patches: peaks by chance
    assert peak(torch.zeros(2, 1, 32, 32)) == pytest.approx(1)


def test_small_patches_have_one_highest_frequency_or_none():
    power = torch.ones(8, 8, dtype=torch.float64)
    assert lattice_peak(power) == pytest.approx(1)
    power[3, 0] = 5
    assert lattice_peak(power) == pytest.approx(4)
    with pytest.raises(ValueError, match="4 pixels have no frequencies"):
        lattice_peak(torch.ones(4, 4, dtype=torch.float64))
